"""The codes of findings: what each means, its effect on training, and the repair. docs/checking.md repeats them.

A code never changes its meaning: scripts read it from `dreamgen check --json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamgen.extensions.export_format import EXPORT_FORMATS

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Code:
    """A kind of finding.

    Args:
        severity: error: training fails or learns something wrong; warning: it may. A finding may be less severe.
        what: What is wrong.
        consequence: The effect on training.
        repair: What to do; "" if the data must be created again.
        fixable: Whether `--fix` repairs it.
        full_only: Whether it is found only when images are decoded, not with `--fast`.
    """

    severity: Severity
    what: str
    consequence: str
    repair: str = ""
    fixable: bool = False
    full_only: bool = False


ANY, LEROBOT, GROOT, HDF5 = "Any format", "LeRobot", "GR00T", "HDF5"
WRITE_AGAIN = "write the images again from their source"
EXPORT_AGAIN = "export or copy the dataset again"
RECORD_AGAIN = "drop the episode, or take it from its source again"

CODES_BY_TOPIC: dict[str, dict[str, Code]] = {
    ANY: {
        "missing-file": Code("error", "a file that the metadata names does not exist",
            "loading fails, or the episode is lost", EXPORT_AGAIN),
        "unreadable-file": Code("error", "a file is truncated, or is not of the type that its name implies",
            "readers that need the file fail", EXPORT_AGAIN),
        "path-outside": Code("error", "a path leads outside the dataset",
            "other files of the machine are read, or none", "name a path within the dataset"),
        "missing-column": Code("error", "a column or array that readers need is missing", "readers that need it fail",
            "index columns follow from the episodes; others must come from the source", fixable=True),
        "vector-length": Code("error", "a vector has another length than its feature, or than in other episodes",
            "loading fails, or episodes cannot be put into one batch", EXPORT_AGAIN),
        "not-finite": Code("error", "an action or a state is NaN or infinite", "the loss becomes NaN", RECORD_AGAIN),
        "row-count": Code("error", "an episode has more or fewer rows than its length",
            "images and actions are mismatched, or rows of another episode are read", EXPORT_AGAIN),
        "picture-size": Code("error", "images differ in size from the feature, or from other episodes",
            "models are built for the wrong size, or batches cannot be stacked", "correct the shape, or resize"),
        "damaged-picture": Code("error", "a stored image cannot be decoded",
            "loading fails, or corrupt images are trained on", RECORD_AGAIN),
        "picture-mirrored": Code("warning", "images of an episode show the scene of the others mirrored or turned",
            "a policy learns with left and right, or up and down, exchanged", WRITE_AGAIN, full_only=True),
        "picture-channels": Code("warning", "red and blue of an episode's images are exchanged, judging by recorded "
            "statistics or other episodes", "a policy learns with the wrong colors", WRITE_AGAIN, full_only=True),
        "action-lag": Code("warning", "actions of an episode fit its states at another delay than in all others",
            "the policy learns to act too early or too late", "put the actions back in their rows", full_only=True),
        "no-episodes": Code("error", "there is no episode", "there is nothing to train on"),
        "unnamed-file": Code("warning", "a file that the metadata does not name",
            "it is uploaded, and tools that list folders read it", "move it out of the dataset"),
        "manifest-differs": Code("error", "a file is not the one that the manifest lists",
            "values, images or places may have changed without any other trace", EXPORT_AGAIN),
        "manifest-unlisted": Code("warning", "a file that the manifest does not list",
            "it was added after the dataset was written", "move it out of the dataset, or --write_manifest"),
        "manifest-damaged": Code("error", "the manifest itself was changed",
            "changes of other files may be missed", EXPORT_AGAIN),
        "repair-interrupted": Code("error", "`--fix` was stopped while it replaced files",
            "some files are repaired and others are not", "finish it", fixable=True),
    },
    LEROBOT: {
        "unknown-version": Code("error", "codebase_version is not one that readers know", "readers refuse the dataset",
            "write the version of the layout: v2.0, v2.1 or v3.0"),
        "fps": Code("error", "the frame rate is not a number above 0", "no frame can be found by its time",
            "write the rate of the videos"),
        "fps-differs": Code("error", "info.json, a camera's info and its video have different frame rates",
            "images and actions drift apart", "write the rate at which the data was recorded"),
        "path-template": Code("error", "data_path or video_path cannot be filled in", "no file can be found",
            "write the layout's own template"),
        "feature": Code("error", "a feature of info.json is malformed", "the column cannot be read",
            "give it a dtype, a shape, and a name without a slash"),
        "feature-names": Code("warning", "a feature has more or fewer names than values", "values get wrong names",
            "give each value one name"),
        "picture-names": Code("error", "a camera's axes have no names, or others than its shape",
            "lerobot cannot build a policy, or takes rows for channels", "name them, such as height, width, channels"),
        "float64": Code("warning", "a feature is stored in float64",
            "batches mix float64 with a float32 model, and take twice the RAM", "convert it to float32"),
        "wrong-total": Code("error", "a total in info.json is not what was counted",
            "loaders index past the end or leave episodes out", "count again", fixable=True),
        "wrong-split": Code("error", "a split names episodes that do not exist, or is malformed",
            "loaders that follow the split fail", "name the episodes that exist", fixable=True),
        "episode-entry": Code("error", "the entry of an episode is malformed", "the episode cannot be found",
            EXPORT_AGAIN),
        "episode-duplicate": Code("error", "an episode has two entries", "readers count an episode twice",
            "remove one of the entries"),
        "episode-gap": Code("error", "an episode number is missing", "readers use another episode's entry",
            "number the episodes from 0 without a gap"),
        "episode-length": Code("error", "dataset_to_index - dataset_from_index is not the episode's length",
            "windows reach into the neighboring episode", EXPORT_AGAIN),
        "task-entry": Code("error", "a line of the task table is malformed", "an instruction is lost",
            "write task_index and task"),
        "task-duplicate": Code("error", "a task, or its number, appears twice in the task table",
            "episodes get another task's instruction, or one instruction counts as two", "keep one of them"),
        "task-order": Code("error", "tasks.parquet is not in the order of task_index",
            "LeRobot uses the row number as task_index, so episodes get another instruction", "sort the table"),
        "task-unknown": Code("error", "a row's task_index is not in the task table", "the instruction cannot be found",
            "add the task"),
        "task-empty": Code("warning", "a task is empty", "a policy is trained without an instruction",
            "write an instruction"),
        "episode-tasks": Code("error", "an episode's list of tasks differs from the tasks of its rows",
            "readers disagree about the instruction", "list the tasks of its rows"),
        "column-type": Code("error", "a column is stored in another type than that of its feature",
            "loading casts or fails", "store it in the type of its feature"),
        "unnamed-column": Code("warning", "a column that is not a feature", "readers reject it or drop it",
            "add it to info.json, or drop it"),
        "timestamp": Code("error", "timestamp[i] is not i / fps",
            "the loader fails, or pairs the action with another frame", "write i / fps"),
        "index": Code("error", "`index` does not count all rows without gaps", "rows are mistaken for other rows",
            "count the rows again"),
        "frame-index": Code("error", "`frame_index` does not count the episode's rows from 0",
            "rows are mistaken for those of another frame", "count the rows again"),
        "episode-index": Code("error", "`episode_index` of the rows is another episode's",
            "actions of one episode are paired with images of another", "put the files back in their places"),
        "camera-without-files": Code("error", "a camera of info.json has no video at all", "loading fails",
            "remove the feature from info.json, or add the videos"),
        "damaged-video": Code("error", "a video ends early or cannot be decoded",
            "loading fails, or corrupt images are trained on", EXPORT_AGAIN),
        "frame-count": Code("error", "an episode has different numbers of frames and rows",
            "images and actions are mismatched", EXPORT_AGAIN),
        "spare-frames": Code("warning", "a video has frames that belong to no episode",
            "offsets may be wrong", "export again if the offsets are in doubt"),
        "frame-time": Code("error", "a frame has the wrong timestamp", "the loader fails, or returns another frame",
            "encode the video again at a constant rate"),
        "video-span": Code("error", "to_timestamp - from_timestamp is not length / fps",
            "the next episode's frames are read, or frames are missed", EXPORT_AGAIN),
        "video-overlap": Code("error", "two episodes claim the same frames of a video",
            "frames of one episode are read as another's", EXPORT_AGAIN),
        "video-swapped": Code("error", "videos of some episodes were exchanged, judging by their statistics or states",
            "every action of these episodes is paired with a wrong image", "put the videos back in their places",
            full_only=True),
        "video-backwards": Code("warning", "images of an episode show its states in reverse, judging by other episodes",
            "actions are paired with wrong images", "write the images again from their source", full_only=True),
        "picture-statistics": Code("warning", "decoded images do not match the recorded statistics of their episode",
            "images may be another episode's, and are normalized with the wrong statistics",
            "compute the statistics again if the video is the right one", full_only=True),
        "video-info": Code("warning", "a camera's info names another codec or pixel format than the video has",
            "a wrong decoder may be chosen", "write the video's own"),
        "video-display": Code("warning", "a video asks for its frames to be turned, or its pixels to be stretched",
            "readers differ: some show frames as they are stored", "encode the video again, as it is to be shown",
            full_only=True),
        "statistics-missing": Code("error", "statistics are missing, in whole or in part",
            "actions cannot be normalized", "compute them from the rows", fixable=True),
        "statistics-length": Code("error", "a statistic has another length than its vector", "normalization fails",
            "compute it from the rows", fixable=True),
        "statistics-not-finite": Code("error", "a statistic is not a finite number", "actions become NaN",
            "compute it from the rows", fixable=True),
        "statistics-differ": Code("warning", "the statistics do not match the rows",
            "actions are normalized with the statistics of other data", "compute them from the rows", fixable=True),
        "episode-statistics-differ": Code("error", "the recorded statistics of an episode do not match its rows",
            "rows were exchanged between episodes or changed, so actions may be paired with wrong images",
            "find out which of the two is right"),
    },
    GROOT: {
        "modality-missing": Code("warning", "there is no modality.json", "GR00T cannot read the dataset",
            "write one if GR00T is to read the dataset"),
        "modality-entry": Code("error", "modality.json is malformed or names a feature that does not exist",
            "GR00T cannot read the dataset", "name the features of info.json"),
        "modality-slice": Code("error", "a slice of modality.json exceeds its vector, or is empty",
            "GR00T reads fewer values than intended, or none", "0 <= start < end <= size of the vector"),
        "annotation-column": Code("error", "an annotation of modality.json has no column",
            "GR00T cannot read the dataset", "add the column, or drop the annotation"),
        "annotation-list": Code("error", "annotation cells are not single whole numbers",
            "GR00T uses a list as an index and fails", "store one index of tasks.jsonl per row"),
        "annotation-unknown": Code("error", "an annotation is not an index of tasks.jsonl",
            "the instruction cannot be found", "add the task"),
        "names-pairing": Code("error", "a camera's axis names do not match its info or video_info",
            "GR00T N1 cannot read the camera",
            "[height, width, channel] with video_info, or [height, width, channels] with info"),
        "groot-count": Code("error", "GR00T's stats.json holds a count",
            "GR00T slices it like the other statistics, and fails", "compute the file from the rows",
            fixable=True),
    },
    HDF5: {
        "hdf5-layout": Code("error", "a group that the format needs is missing", "no reader recognizes the file",
            EXPORT_AGAIN),
        "hdf5-attribute": Code("error", "an attribute that readers need is missing or malformed", "readers fail",
            "write the attribute"),
        "hdf5-total": Code("error", "`total` or `num_samples` is not what was counted",
            "progress and sampling are wrong", "count again", fixable=True),
        "demo-name": Code("error", "a demo is not called demo_<number>",
            "robomimic sorts demos by number and fails", "rename the group"),
        "mask": Code("error", "a mask is not a list of demos, or names one that does not exist",
            "the split cannot be loaded", "name the demos that exist"),
        "mask-overlap": Code("warning", "demos are in both the training and the validation mask",
            "validation sees training data", "keep each demo in one mask"),
        "action-range": Code("error", "a robomimic action is outside [-1, 1]",
            "policies that end in tanh cannot produce it", "scale the actions"),
        "keys-differ": Code("error", "observations or cameras differ between episodes",
            "a loader that takes them from the first episode fails on another", EXPORT_AGAIN),
        "picture-type": Code("error", "images are not uint8 (N, H, W, channels)",
            "readers divide by 255 and swap axes", "store uint8 images, channels last"),
        "soft-link": Code("warning", "data behind a soft link", "its target was not checked",
            "store the data itself"),
        "length-varies": Code("warning", "ACT episodes have different lengths",
            "ACT's own loader stacks whole episodes and fails; its successors pad them",
            "write episodes of equal length if ACT's own loader is to read them"),
    },
}  # fmt: skip

CODES: dict[str, Code] = {name: code for topic in CODES_BY_TOPIC.values() for name, code in topic.items()}


def code_named(name: str) -> Code:
    """Return a code: one of `CODES`, or one that only a registered format has.

    Raises:
        KeyError: if there is no such code.
    """
    if name in CODES:
        return CODES[name]
    codes: dict[str, Code] = {}
    for _, export_format in EXPORT_FORMATS.items():
        codes |= export_format.reader.codes
    return codes[name]


def markdown() -> str:
    """Return the tables of the documentation, one a topic."""
    parts = []
    for topic, codes in CODES_BY_TOPIC.items():
        rows = [f"| `{name}` | {code.severity} | {_what(code)} | {code.consequence} | {_repair(code)} |"
                for name, code in codes.items()]  # fmt: skip
        parts.append("\n".join([f"### {topic}", "", "| code | | what is wrong | consequence | repair |",
                                "|---|---|---|---|---|", *rows]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _what(code: Code) -> str:
    return code.what + (" (not seen with `--fast`)" if code.full_only else "")


def _repair(code: Code) -> str:
    return code.repair + (" (`--fix`)" if code.fixable else "")
