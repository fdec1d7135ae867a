#!/usr/bin/env python3
"""Records roll-outs of Push-T on pymunk as the yardstick of this crate's tests.

    pip install pymunk==7.3.1 shapely numpy
    python record.py > ../tests/golden.json

The scene is built from the numbers in ../src/geometry.rs and ../src/physics.rs (source: the public Push-T environment);
engine defaults of Chipmunk are left alone, since they are what is to be matched. Coverage is shapely's. Starts and
targets are generated here; no demonstration data goes in. Every target is written out, so that the file stands alone.
"""

import json
import math
import sys

import numpy as np
import pymunk
import shapely
from shapely.geometry import Polygon

BAR = [(-60, 0), (60, 0), (60, 30), (-60, 30)]
STEM = [(-15, 30), (15, 30), (15, 120), (-15, 120)]
STEPS = 60


class Scene:
    def __init__(self, start):
        self.space = pymunk.Space()
        self.space.damping = 0
        lo, hi = 5, 506
        for a, b in [((lo, hi), (lo, lo)), ((lo, lo), (hi, lo)), ((hi, lo), (hi, hi)), ((lo, hi), (hi, hi))]:
            self.space.add(pymunk.Segment(self.space.static_body, a, b, 2))
        self.pusher = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.space.add(self.pusher, pymunk.Circle(self.pusher, 15))
        self.block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, BAR))
        self.block.center_of_gravity = (0, 45)
        self.space.add(self.block, pymunk.Poly(self.block, BAR), pymunk.Poly(self.block, STEM))
        self.pusher.position = tuple(start[0:2])
        self.block.angle = start[4]
        self.block.position = tuple(start[2:4])
        self.space.step(0.01)

    def step(self, target):
        for _ in range(10):
            error = pymunk.Vec2d(*target) - self.pusher.position
            self.pusher.velocity += (100 * error - 20 * self.pusher.velocity) * 0.01
            self.space.step(0.01)
        return self.state()

    def state(self):
        return [*self.pusher.position, *self.block.position, self.block.angle]


def tee(x, y, angle):
    cos, sin = math.cos(angle), math.sin(angle)
    place = lambda corners: Polygon([(cos * u - sin * v + x, sin * u + cos * v + y) for u, v in corners])
    return shapely.union(place(BAR), place(STEM))


GOAL = tee(256, 256, math.pi / 4)


def coverage(state):
    return GOAL.intersection(tee(*state[2:])).area / GOAL.area


def roll(name, start, targets):
    scene = Scene(start)
    states = [scene.step(target) for target in targets]
    return {
        "name": name,
        "start": list(map(float, start)),
        "targets": [list(map(float, target)) for target in targets],
        "states": [[round(value, 9) for value in state] for state in states],
        "coverage": [round(coverage(state), 9) for state in states],
    }


def chase(rng, start):
    """Targets that push: at points of the block as it moves in a dry run, from changing sides.

    They stay in the middle of the plane. A block that is crushed against a wall has no consistent solution: what an
    engine then does depends on the order in which it visits contacts, and is not compared here.
    """
    scene, targets, aim = Scene(start), [], None
    for i in range(STEPS):
        if i % 12 == 0:
            aim = rng.choice([(-50, 15), (50, 15), (0, 15), (0, 60), (0, 110), (-30, 30), (25, 35)])
        x, y = scene.block.local_to_world(tuple(map(float, aim)))
        here = scene.pusher.position
        reach = pymunk.Vec2d(x - here.x, y - here.y)
        if reach.length > 40:
            reach = reach.normalized() * 40
        target = [round(here.x + reach.x + rng.normal() * 3, 3), round(here.y + reach.y + rng.normal() * 3, 3)]
        targets.append([min(max(value, 150), 362) for value in target])
        scene.step(targets[-1])
    return targets


def main():
    rng = np.random.default_rng(7)
    runs = [
        roll("push the bar's middle", [256, 100, 256, 200, 0.0], [[256, 100 + 4 * i] for i in range(STEPS)]),
        roll("push the bar's end", [300, 100, 256, 200, 0.0], [[300, 100 + 6 * i] for i in range(STEPS)]),
        roll("push the stem sideways", [150, 300, 256, 200, 0.0], [[150 + 5 * i, 300] for i in range(STEPS)]),
        roll("into the corner of bar and stem", [330, 300, 256, 200, 0.0], [[330 - 2 * i, 300 - 2 * i] for i in range(STEPS)]),
        roll("against a wall and along it", [256, 200, 256, 330, 0.0], [[256 + 2 * i, 200 + 8 * i] for i in range(STEPS)]),
        roll("hit and pull back", [256, 120, 256, 200, 0.3], [[256, 230 if i % 10 < 5 else 120] for i in range(STEPS)]),
        roll("corner first into a wall", [240, 200, 256, 340, 0.5], [[240, min(200 + 8 * i, 350)] for i in range(STEPS)]),
        roll("starts with the pusher in the block", [250, 205, 256, 200, 0.0], [[250, 205]] * STEPS),
    ]
    while len(runs) < 24:
        start = [*rng.integers(50, 450, 2).tolist(), *rng.integers(150, 350, 2).tolist(), float(rng.uniform(-3, 3))]
        x, y = Scene(start).block.world_to_local((start[0], start[1]))
        if -80 < x < 80 and -20 < y < 140:
            continue
        runs.append(roll(f"chase {len(runs)}", start, chase(rng, start)))
    json.dump({"source": f"pymunk {pymunk.version}", "runs": runs}, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main()
