"""The episodes that inverse dynamics trains on: small clips of the training set with their actions and states.

Axes: T frames, H height, W width, C channels, A action, S state, D dimensions of one vector.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.data.seeds import derived_seed
from dreamgen.data.trajectory import read_schema, read_trajectory
from dreamgen.data.video import decode_frames
from dreamgen.errors import Problems, UserError
from dreamgen.models.idm.model import small_decoded
from dreamgen.models.idm.network import WHOLE_FRAME
from dreamgen.progress import Progress, log
from dreamgen.run.files import read_json
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder
from finetune.windows import TrainingClip, read_training_set

MAX_RAM_SHARE = 0.5  # of the machine's RAM, for all small frames together


@dataclass(frozen=True)
class IdmEpisode:
    """A clip of the training set with the robot's actions and states.

    Args:
        name: Of the clip.
        small_TCHW: uint8, RGB, from `small_decoded`; C holds the colors of one camera after the other.
        action_TA: float32, in the robot's units.
        state_TS: float32, in the robot's units, or None.
    """

    name: str
    small_TCHW: np.ndarray
    action_TA: np.ndarray
    state_TS: np.ndarray | None

    def part(self, start: int, stop: int) -> IdmEpisode:
        """Return frames `start` to `stop` - 1."""
        state_TS = None if self.state_TS is None else self.state_TS[start:stop]
        return IdmEpisode(self.name, self.small_TCHW[start:stop], self.action_TA[start:stop], state_TS)


def read_episodes(run: RunFolder, settings: Settings) -> list[IdmEpisode]:
    """Decode every clip of the run's training set that has actions, once, and keep it at a small size in RAM.

    Raises:
        UserError: if no clip has actions, a trajectory does not fit its clip or the others, or the RAM is too small.
    """
    return _read(run, settings)


def read_extra_episodes(settings: Settings, features: RobotFeatures) -> list[IdmEpisode]:
    """Decode the clips of `idm.extra_demos`.

    Args:
        settings: Of the run.
        features: Of the run's own demonstrations.

    Raises:
        UserError: as `read_episodes` does; or if another robot is in them.
    """
    problems, episodes = Problems(), []
    for folder in settings.idm.extra_demos:
        with problems.collected():
            extra = RunFolder(Path(folder))
            other = RobotFeatures.from_dict(read_json(extra.need(extra.train / "features.json", "prepare")))
            for name in ("action_names", "state_names") if settings.idm.predict_state else ("action_names",):
                if getattr(other, name) != getattr(features, name):
                    raise UserError(
                        f"idm.extra_demos: {folder} is of another robot: its {name} differ",
                        actual=", ".join(getattr(other, name)) or "none",
                        allowed=", ".join(getattr(features, name)) or "none",
                    )
            if len(other.views) != len(features.views):
                raise UserError(
                    f"idm.extra_demos: {folder} has another number of cameras",
                    actual=max(1, len(other.views)), allowed=max(1, len(features.views)),
                )  # fmt: skip
            episodes += [replace(episode, name=f"{folder}: {episode.name}") for episode in _read(extra, settings)]
    problems.raise_if_any("extra demonstrations that cannot be used")
    return episodes


def view_shares(features: RobotFeatures, height: int, width: int) -> tuple[tuple[float, float, float, float], ...]:
    """Return where each camera is in a frame, as shares: top, left, height, width; one camera fills the frame."""
    return tuple(
        (view.top / height, view.left / width, view.height / height, view.width / width) for view in features.views
    ) or (WHOLE_FRAME,)


def _read(run: RunFolder, settings: Settings) -> list[IdmEpisode]:
    clips = read_training_set(run, settings.video)
    tables = {clip: run.train / "trajectories" / f"{clip.path.stem}.parquet" for clip in clips}
    with_actions = [clip for clip in clips if tables[clip].is_file() and "action" in read_schema(tables[clip]).names]
    if not with_actions:
        raise UserError(
            f"{run.train / 'trajectories'} has no actions, so label has no model to train",
            allowed="demonstrations with an action for each frame, such as a LeRobot dataset",
            next_step="dreamgen prepare --out NEW_RUN --demos DATASET_WITH_ACTIONS",
        )
    if len(with_actions) < len(clips):
        log(f"inverse dynamics: {len(clips) - len(with_actions)} of {len(clips)} clips have no actions and are skipped")
    vectors = _read_all_vectors(with_actions, tables, settings.idm.predict_state)
    image_px, episodes = settings.idm.image_px, []
    features = RobotFeatures.from_dict(read_json(run.need(run.train / "features.json", "prepare")))
    views = view_shares(features, settings.video.height, settings.video.width)
    _check_memory(sum(clip.num_frames for clip in with_actions) * len(views), image_px)
    with Progress("inverse dynamics: decode", len(with_actions)) as progress:
        for clip, (action_TA, state_TS) in zip(with_actions, vectors, strict=True):
            frames = [small_decoded(frame, image_px, views) for frame in decode_frames(clip.path)]
            episodes.append(IdmEpisode(clip.path.stem, np.stack(frames), action_TA, state_TS))
            progress.add()
    return episodes


def split_episodes(
    episodes: list[IdmEpisode], share: float, seed: int
) -> tuple[list[IdmEpisode], list[IdmEpisode], str]:
    """Hold out episodes, at least one; of a single episode, its last part.

    Args:
        episodes: All, in the training set's order.
        share: Share of the episodes to hold out.
        seed: Selects them.

    Returns:
        Episodes to train on, held-out episodes, and a description of the split.

    Raises:
        UserError: if the only episode is too short to split.
    """
    if len(episodes) == 1:
        (only,) = episodes
        num_frames = len(only.small_TCHW)
        num_held_out = max(2, round(num_frames * share))
        if num_frames - num_held_out < 2:
            raise UserError(
                f"{only.name} is the only episode with actions and too short to measure an error on",
                actual=f"{num_frames} frames, {num_held_out} of them held out",
                allowed="two episodes, or a longer one",
                next_step="add demonstrations, or lower --idm.held_out",
            )
        cut = num_frames - num_held_out
        return [only.part(0, cut)], [only.part(cut, num_frames)], f"the last {num_held_out} frames of the only episode"
    num_held_out = min(len(episodes) - 1, max(1, round(len(episodes) * share)))
    order = np.random.default_rng(derived_seed(seed, "idm", "held out")).permutation(len(episodes)).tolist()
    chosen = set(order[:num_held_out])
    train = [episode for number, episode in enumerate(episodes) if number not in chosen]
    return train, [episodes[number] for number in sorted(chosen)], f"{num_held_out} of {len(episodes)} episodes"


def _read_all_vectors(
    clips: list[TrainingClip], tables: dict[TrainingClip, Path], want_state: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    problems, vectors = Problems(), []
    for clip in clips:
        with problems.collected():
            vectors.append(_read_vectors(tables[clip], clip.num_frames, want_state))
    for number, name in enumerate(("action", "observation.state")):
        shapes = {None if pair[number] is None else pair[number].shape[1] for pair in vectors}
        if len(shapes) > 1:
            problems.add(
                f"{tables[clips[0]].parent}: {name} is not the same in all trajectories",
                actual=", ".join(sorted(str(shape or "missing") for shape in shapes)),
                allowed="one number of dimensions",
            )
    problems.raise_if_any("trajectories that cannot be trained on")
    return vectors


def _read_vectors(path: Path, num_frames: int, want_state: bool) -> tuple[np.ndarray, np.ndarray | None]:
    rows = read_trajectory(path, include_state=want_state)
    if rows.action_TA is None:
        raise UserError(f"{path} has no column action")
    if rows.num_rows != num_frames:
        raise UserError(f"{path} does not fit its clip", actual=f"{rows.num_rows} rows", allowed=f"{num_frames} frames")
    return rows.action_TA, rows.state_TS


def _check_memory(num_frames: int, image_px: int) -> None:
    needed_gib = num_frames * 3 * image_px**2 / 2**30
    limit_gib = MAX_RAM_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    log(f"inverse dynamics: {num_frames} frames of {image_px} px take {needed_gib:.2f} GiB of RAM")
    if needed_gib > limit_gib:
        raise UserError(
            "the demonstrations do not fit into RAM for inverse dynamics",
            actual=f"{needed_gib:.1f} GiB", allowed=f"{limit_gib:.1f} GiB",
            next_step=f"lower --idm.image_px ({image_px}), or use fewer episodes with --prepare.max_episodes",
        )  # fmt: skip
