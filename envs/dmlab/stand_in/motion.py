"""How the player moves: DeepMind Lab's Quake III walk, expressed as move commands of the stand-in engine.

DeepMind Lab runs 60 frames a second, the stand-in one tic for every two of them. Here a velocity is integrated frame by frame as
Quake III does it (friction, then acceleration towards the wished velocity, clipped at the top speed), summed over the tic, and
turned into the thrust that makes the engine move the player by just that much: Doom adds the thrust, moves, then multiplies the
velocity by its own friction. Walls are the engine's business; after every tic that reports back, the velocity is taken from it
wherever a wall changed it.

Units: map units and seconds, except `*_per_tic`. x is east, y north, angles in degrees counter-clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sf_fixpo.envs.dmlab.stand_in.resources import MOVE_SCALE

FRAMES_PER_SECOND = 60
FRAMES_PER_TIC = 2
TOP_SPEED = 320.0  # units/s
DEGREES_PER_PIXEL = 0.1056  # a frame

_ACCELERATION = 10.0  # Quake III's pm_accelerate, 1/s
_FRICTION = 6.0  # pm_friction, 1/s
_STOP_SPEED = 100.0  # pm_stopspeed, units/s
_DOOM_FRICTION = 0.90625
_MAX_COMMAND = 50
_THRUST_PER_COMMAND = MOVE_SCALE * 0.03125  # units/tic that one unit of a move command adds to the velocity
_BLOCKED = 0.1  # units/tic by which the engine's velocity differs from the predicted one only where something was in the way

Vector = tuple[float, float]


def frame_velocity(velocity: Vector, wish: Vector) -> Vector:
    """The velocity after one frame of walking.

    Args:
        velocity: units/s.
        wish: direction the player wants to go, length 1, or (0, 0).
    """
    dt = 1.0 / FRAMES_PER_SECOND
    vx, vy = velocity
    speed = math.hypot(vx, vy)
    if speed < 1.0:
        vx = vy = 0.0
    else:
        kept = max(speed - max(speed, _STOP_SPEED) * _FRICTION * dt, 0.0) / speed
        vx, vy = vx * kept, vy * kept
    wx, wy = wish
    if wx or wy:
        missing = TOP_SPEED - (vx * wx + vy * wy)
        gain = min(max(missing, 0.0), _ACCELERATION * dt * TOP_SPEED)
        vx, vy = vx + gain * wx, vy + gain * wy
    return vx, vy


def wish_direction(forward: int, strafe: int, angle: float) -> Vector:
    """Unit vector of a move action, or (0, 0).

    Args:
        forward: +1 forwards, -1 backwards.
        strafe: +1 right, -1 left.
        angle: the player's facing, degrees.
    """
    length = math.hypot(forward, strafe)
    if not length:
        return 0.0, 0.0
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (forward * c + strafe * s) / length, (forward * s - strafe * c) / length


@dataclass
class Walker:
    """The player's velocity on both sides of the fence.

    Attributes:
        velocity: as DeepMind Lab would have it, units/s.
        engine_velocity: as the engine holds it between tics, units/tic.
    """

    velocity: Vector = (0.0, 0.0)
    engine_velocity: Vector = (0.0, 0.0)

    def command(self, wishes: list[Vector], angle: float) -> tuple[int, int]:
        """Move command (forward, right) for the next tic, in the engine's whole units.

        Args:
            wishes: wished direction in each frame of the tic.
            angle: facing at which the engine applies the command, degrees.
        """
        dx = dy = 0.0
        for wish in wishes:
            self.velocity = frame_velocity(self.velocity, wish)
            dx += self.velocity[0] / FRAMES_PER_SECOND
            dy += self.velocity[1] / FRAMES_PER_SECOND
        ax, ay = dx - self.engine_velocity[0], dy - self.engine_velocity[1]
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        forward, right = _whole(ax * c + ay * s), _whole(ax * s - ay * c)
        tx = _THRUST_PER_COMMAND * (forward * c + right * s)
        ty = _THRUST_PER_COMMAND * (forward * s - right * c)
        vx, vy = self.engine_velocity
        self.engine_velocity = ((vx + tx) * _DOOM_FRICTION, (vy + ty) * _DOOM_FRICTION)
        return forward, right

    def correct(self, engine_velocity: Vector) -> None:
        """Takes over the velocity the engine reports (units/tic) where a wall has changed it.

        Elsewhere the prediction stays: a walk through the open is then the same however often the engine reports.
        """
        ex, ey = self.engine_velocity
        if math.hypot(engine_velocity[0] - ex, engine_velocity[1] - ey) > _BLOCKED:
            scale = FRAMES_PER_SECOND / FRAMES_PER_TIC / _DOOM_FRICTION
            self.velocity = (engine_velocity[0] * scale, engine_velocity[1] * scale)
            self.engine_velocity = engine_velocity


def _whole(thrust: float) -> int:
    return max(-_MAX_COMMAND, min(_MAX_COMMAND, round(thrust / _THRUST_PER_COMMAND)))
