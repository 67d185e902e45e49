"""How uncertain the inverse-dynamics model is about the actions of the clip.

The standard deviation of its predictions over networks and overlapping windows, scaled to the error on held-out
episodes, in units of the standard deviation of the demonstrations' actions; the mean over frames and moving dimensions.
The spread of an ensemble as uncertainty: Lakshminarayanan et al., 2017. Label writes it into the label file.

Unit: ratio. Cost: none beside reading the label.
"""

from __future__ import annotations

from dreamgen.extensions.score import Score, Threshold

SCORE = Score(
    name="label_uncertainty",
    summary="standard deviation of the labeled actions over that of the demonstrations' actions",
    threshold=Threshold(
        setting="max_label_uncertainty", default=None, low=0.0,
        help="standard deviation of the labeled actions over that of the demonstrations' actions, above which it is "
        "rejected",
    ),
    rejection="uncertain label: {value:.2f} of the actions' standard deviation > {limit:g}",
    measure=lambda clip: clip.label_uncertainty,
    is_calibrated=False,  # demonstrations have no labels of a model
)  # fmt: skip
