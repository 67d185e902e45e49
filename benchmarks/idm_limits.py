"""Why inverse dynamics fails on few episodes; for `benchmarks/idm.py --limits`.

- Blocks: the linear reading predicts parts of episodes whose other parts it was fitted to. Scene, colors and robot are
  known then, and what is missing are the poses between. The longer the parts, the fewer poses near them are known.
- True states: actions from the true state of each frame: the state of the same name and the mean gap between the two
  where the state follows the action, else a linear map fitted to the other episodes. It is what a perfect reading of
  states would bring.

Axes: T frames, X features, P what is predicted, A action.
"""

from __future__ import annotations

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.models.idm.linear import fit_linear
from dreamgen.models.idm.network import IdmConfig
from dreamgen.models.idm.vector_stats import VectorStats
from dreamgen.run.records import RobotFeatures
from finetune.idm_episodes import IdmEpisode
from finetune.idm_linear import episode_features, episode_targets
from finetune.inverse_dynamics import describe_robot

BLOCKS = (1, 10, 40, 93)  # frames
NUM_FOLDS = 5


def block_predictions(
    features: RobotFeatures, settings: Settings, episodes: list[IdmEpisode]
) -> tuple[VectorStats, dict[str, list[np.ndarray]]]:
    """Return the statistics of all episodes, and their actions as predicted from other parts of the same episodes."""
    config = describe_robot(features, settings, episodes)
    rows = [episode_features(episode.small_TCHW, settings.video.num_frames) for episode in episodes]
    targets = [episode_targets(config, episode) for episode in episodes]
    found = {}
    for size in BLOCKS:
        blocks = [(i, slice(at, at + size)) for i, x in enumerate(rows) for at in range(0, len(x), size)]
        order = np.random.default_rng(size).permutation(len(blocks))
        outputs = [np.zeros(x.shape, np.float32) for x in targets]
        for left_out in np.array_split(order, NUM_FOLDS):
            kept = [blocks[number] for number in order if number not in left_out]
            fitted = fit_linear([rows[i][part] for i, part in kept], [targets[i][part] for i, part in kept])
            for i, part in (blocks[number] for number in left_out):
                outputs[i][part] = rows[i][part] @ fitted.weight_XP + fitted.bias_P
        found[f"blocks of {size} frames"] = [unvoted(config, output_TP) for output_TP in outputs]
    return config.actions, found


def actions_from_states(
    features: RobotFeatures, settings: Settings, train: list[IdmEpisode], held_out: list[IdmEpisode]
) -> tuple[VectorStats, dict[str, list[np.ndarray]]]:
    """Return the statistics of training episodes, and actions as predicted from the true states of held-out ones."""
    config = describe_robot(features, settings, train)
    states, outputs = config.states, []
    assert states is not None
    scale_S = np.where(np.asarray(states.std) > 0, states.std, np.inf)
    rows = [
        [(e.state_TS - states.mean) / scale_S for e in part if e.state_TS is not None] for part in (train, held_out)
    ]
    fitted = fit_linear(rows[0], [episode_targets(config, episode) for episode in train])
    outputs = [x_TX @ fitted.weight_XP + fitted.bias_P for x_TX in rows[1]]
    found = [unvoted(config, output_TP) for output_TP in outputs]
    for action_TA, episode in zip(found, held_out, strict=True):
        assert episode.state_TS is not None
        for name in config.followed:
            a, s = config.actions.names.index(name), states.names.index(name)
            action_TA[:, a] = episode.state_TS[:, s] + config.actions.mean[a] - states.mean[s]
    return config.actions, {"actions from true states": found}


def unvoted(config: IdmConfig, output_TP: np.ndarray) -> np.ndarray:
    """Return action_TA where binary actions stay between their two values, so that no vote hides what is known."""
    actions = config.actions
    action_TA = actions.from_network(output_TP[:, : len(actions.binary_outputs())].astype(np.float64))
    dims = np.flatnonzero(actions.binary())
    low_D, high_D = np.asarray(actions.low)[dims], np.asarray(actions.high)[dims]
    columns = np.flatnonzero(actions.binary_outputs())
    action_TA[:, dims] = low_D + output_TP[:, columns].clip(0, 1) * (high_D - low_D)
    return action_TA
