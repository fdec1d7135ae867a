"""Push-T for training and scoring: physics on pymunk, pictures on OpenCV, many episodes on several processes.

The numbers (geometry, gains, colours, drawing order) are those of the public simulator, as in `examples/pusht`, which is
what Refrain itself scores on; this one exists because training machines have Python. Lengths are pixels of the 512 x 512
plane, y down. A state is (pusher x, y, block x, y, angle).
"""

from __future__ import annotations

import functools
import math
import multiprocessing as mp

import cv2
import numpy as np

SIZE = 96
GOAL = (256.0, 256.0, math.pi / 4)
RECTANGLES = np.array([[(-60, 0), (60, 0), (60, 30), (-60, 30)], [(-15, 30), (15, 30), (15, 120), (-15, 120)]], float)
AREA = 120 * 30 + 30 * 90
SUCCESS = 0.95
MAX_STEPS = 300
WHITE, GREEN, GREY = (255, 255, 255), (144, 238, 144), (211, 211, 211)
PUSHER, PUSHER_INNER = (65, 105, 225), (78, 126, 255)
BLOCK, BLOCK_INNER = (119, 136, 153), (142, 163, 183)


def place(points: np.ndarray, pose) -> np.ndarray:
    """Points [..., 2] of the block's frame in the plane, for pose = (x, y, angle), each a number or [N, 1]."""
    x, y, angle = pose
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = points[..., 0], points[..., 1]
    return np.stack([cos * u - sin * v + x, sin * u + cos * v + y], -1)


def mirror(xy: np.ndarray) -> np.ndarray:
    """Points reflected at the goal's axis, which leaves the goal and (but for one pixel) the walls where they are."""
    return 512 - xy[..., ::-1]


def mirror_states(states: np.ndarray) -> np.ndarray:
    return np.concatenate([mirror(states[:, :2]), mirror(states[:, 2:4]), math.pi / 2 - states[:, 4:]], 1)


@functools.cache
def background() -> np.ndarray:
    canvas = np.full((512, 512, 3), WHITE, np.uint8)
    for corners in whole(place(RECTANGLES, GOAL)):
        cv2.fillConvexPoly(canvas, corners, GREEN)
    return cv2.rectangle(canvas, (5, 5), (506, 506), GREY, 4)


def whole(points: np.ndarray) -> np.ndarray:
    return np.rint(points).astype(np.int32)


def draw(state) -> np.ndarray:
    """The scene as 96 x 96 RGB, uint8."""
    canvas = background().copy()
    at = tuple(int(v) for v in whole(state[:2]))
    cv2.circle(canvas, at, 15, PUSHER, -1)
    cv2.circle(canvas, at, 11, PUSHER_INNER, -1)
    for corners in whole(place(RECTANGLES, state[2:5])):
        cv2.fillConvexPoly(canvas, corners, BLOCK_INNER)
        cv2.polylines(canvas, [corners], True, BLOCK, 4)
    return cv2.resize(canvas, (SIZE, SIZE))


def clip(polygon: list, corners: np.ndarray) -> list:
    """The part of a polygon inside a convex one whose corners go in order of increasing angle (Sutherland-Hodgman)."""
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0)):
        side = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        kept = []
        for i, (x, y) in enumerate(polygon):
            j = i - 1
            if (side[i] >= 0) != (side[j] >= 0):
                t = side[j] / (side[j] - side[i])
                kept.append((polygon[j][0] + t * (x - polygon[j][0]), polygon[j][1] + t * (y - polygon[j][1])))
            if side[i] >= 0:
                kept.append((x, y))
        polygon = kept
    return polygon


def coverage(pose) -> float:
    """Share of the goal that a block at `pose` covers."""
    total = 0.0
    for goal in place(RECTANGLES, GOAL):
        for piece in place(RECTANGLES, pose):
            p = clip([tuple(c) for c in piece], goal)
            total += sum(p[i - 1][0] * p[i][1] - p[i][0] * p[i - 1][1] for i in range(len(p))) / 2
    return total / AREA


class Episode:
    """One episode from a random start; `step` is one control step of 0.1 s."""

    def __init__(self, seed: int | None = None, state=None) -> None:
        import pymunk

        rng = np.random.default_rng(seed)
        if state is None:
            state = [*rng.uniform(50, 450, 2), *rng.uniform(100, 400, 2), rng.normal() * 2 * math.pi - math.pi]
        self.space = pymunk.Space()
        self.space.damping = 0
        for a, b in (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506))):
            self.space.add(pymunk.Segment(self.space.static_body, a, b, 2))
        self.pusher = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.space.add(self.pusher, pymunk.Circle(self.pusher, 15))
        bar, stem = ([tuple(c) for c in r] for r in RECTANGLES)
        self.block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, bar))
        self.block.center_of_gravity = (0, 45)
        self.space.add(self.block, pymunk.Poly(self.block, bar), pymunk.Poly(self.block, stem))
        self.pusher.position = tuple(map(float, state[:2]))
        self.block.angle = float(state[4])
        self.block.position = tuple(map(float, state[2:4]))
        self.space.step(0.01)
        self.steps, self.best = 0, 0.0
        self.past = [self.state(), self.state()]

    def state(self) -> np.ndarray:
        return np.array([*self.pusher.position, *self.block.position, self.block.angle])

    @property
    def done(self) -> bool:
        return self.best > SUCCESS or self.steps >= MAX_STEPS

    def step(self, target) -> None:
        for _ in range(10):
            at, speed = self.pusher.position, self.pusher.velocity
            pull = [100 * (float(t) - p) - 20 * v for t, p, v in zip(target, at, speed)]
            self.pusher.velocity = tuple(v + a * 0.01 for v, a in zip(speed, pull))
            self.space.step(0.01)
        self.steps += 1
        state = self.state()
        self.best = max(self.best, coverage(state[2:]))
        self.past = [self.past[-1], state]

    def observation(self) -> tuple[np.ndarray, np.ndarray]:
        """The last two frames [2, 96, 96, 3] and pusher positions [2, 2]."""
        return np.stack([draw(s) for s in self.past]), np.stack([s[:2] for s in self.past])


def serve(pipe) -> None:
    """A process of the farm: draws states, or holds episodes and steps them."""
    cv2.setNumThreads(0)
    episodes = []
    while True:
        what, value = pipe.recv()
        if what == "draw":
            pipe.send(np.stack([draw(s) for s in value]) if len(value) else np.zeros((0, SIZE, SIZE, 3), np.uint8))
            continue
        if what == "reset":
            episodes = [Episode(int(seed)) for seed in value]
        else:
            for episode, actions in zip(episodes, value):
                for action in actions:
                    if not episode.done:
                        episode.step(action)
        pipe.send([(*e.observation(), e.best, e.done) for e in episodes])


class Farm:
    """Processes that draw and simulate. Make it before the first use of a GPU."""

    def __init__(self, processes: int) -> None:
        context = mp.get_context("fork")
        self.pipes = []
        for _ in range(processes):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there,), daemon=True).start()
            self.pipes.append(here)

    def all(self, what: str, values) -> list:
        parts = np.array_split(np.asarray(values), len(self.pipes))
        for pipe, part in zip(self.pipes, parts):
            pipe.send((what, part))
        return [pipe.recv() for pipe in self.pipes]

    def draw(self, states: np.ndarray) -> np.ndarray:
        """States [N, 5] to images [N, 96, 96, 3]."""
        return np.concatenate([im for part in np.array_split(states, -(-len(states) // 4096)) for im in self.all("draw", part)])

    def episodes(self, what: str, values) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`reset` with seeds [N] or `step` with action chunks [N, Ta, 2]: frames, pushers, best coverage, done."""
        rows = [row for part in self.all(what, values) for row in part]
        return tuple(np.stack([row[i] for row in rows]) for i in range(4))
