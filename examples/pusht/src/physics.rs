//! The pusher, the block and the walls, on rapier, with the contact law of the public simulator.
//!
//! The public simulator runs on Chipmunk, whose steps differ from rapier's in ways that a pushed T shows. What is
//! reproduced here, per tick of [`TICK_S`]:
//! - **Order.** Positions move first, with the velocities of the tick before; then contacts are found and solved. rapier
//!   solves and then moves, so the block's twist is kept here and applied at the start of the next tick.
//! - **No memory.** With damping 0 the block starts every solve at rest.
//! - **Only what touches.** A contact exists from overlap on; there is no look-ahead.
//! - **Two solves.** Pushing and un-sinking are solved apart and their velocities added. Overlap beyond
//!   [`SLOP`] shrinks by [`RECOVERY`] a tick. Here that is two worlds of rapier's with the same contacts: one
//!   that does not see the overlap, one with the pusher at rest.
//!
//! What is not reproduced: the order in which contacts are visited. It matters only where no placement satisfies all of
//! them within the sweeps: a block squeezed between pusher and wall, a pusher deep inside the block between bar and stem.
//!
//! No friction, no restitution, no gravity. Pusher and walls do not meet (a kinematic and fixed bodies).
//! Same calls, same bits on every platform that rapier's `enhanced-determinism` covers.
//! Source: behaviour of Chipmunk 7 as observed through pymunk; `reference/` holds the script that records it.

use std::sync::atomic::{AtomicUsize, Ordering};

use rapier2d_f64::dynamics::{
    IntegrationParameters, MassProperties, RigidBodyBuilder, RigidBodyHandle, SpringCoefficients,
};
use rapier2d_f64::geometry::{Collider, ColliderBuilder};
use rapier2d_f64::math::{Pose as RapierPose, Vector};
use rapier2d_f64::pipeline::{ActiveHooks, ContactModificationContext, PhysicsHooks, PhysicsWorld};

use crate::geometry::{BLOCK_COG, BLOCK_RECTANGLES, PUSHER_RADIUS, Pose, WALL_RADIUS, WALL_SPAN, rotate};

/// One tick of the physics, seconds.
pub(crate) const TICK_S: f64 = 0.01;
/// The pusher's position gain, 1/s^2.
const K_P: f64 = 100.0;
/// The pusher's velocity gain, 1/s.
const K_V: f64 = 20.0;
/// The block's mass; the unit is free, as only contacts with bodies that cannot be moved act on it.
const BLOCK_MASS: f64 = 1.0;
/// The block's moment of inertia over its mass, square pixels: twice the bar's moment about the frame's
/// origin, (120^2 + 30^2) / 12 + 15^2 each, which the public code takes as the moment about the centre of gravity.
const BLOCK_INERTIA: f64 = 3000.0;
/// Overlap that is left alone, pixels (Chipmunk's default, an f32 0.1).
const SLOP: f64 = 0.1;
/// Share of the overlap beyond [`SLOP`] that is removed per tick: 1 - 0.9^(60 dt), Chipmunk's default.
const RECOVERY: f64 = 0.061_259_606_640_430_62;
/// Sweeps over the contacts per solve, Chipmunk's default.
const SWEEPS: usize = 10;

/// The moving things, and the two solvers of their contacts.
pub(crate) struct Physics {
    pushing: Solver,
    recovering: Solver,
    pusher_position: [f64; 2],
    pusher_velocity: [f64; 2],
    /// The block's centre of gravity, pixels.
    block_centre: [f64; 2],
    block_angle: f64,
    /// What the last solve gave the block for the next tick.
    block_twist: Twist,
}

/// A velocity (pixels/s) and a turning rate (radians/s).
type Twist = ([f64; 2], f64);

impl Physics {
    /// Bodies at rest, contacts solved once (so that a block that starts sunk into something begins to leave it).
    pub(crate) fn new(pusher: [f64; 2], block: Pose) -> Self {
        let cog = rotate(BLOCK_COG, block.angle);
        let mut physics = Self {
            pushing: Solver::new(Pass::Push),
            recovering: Solver::new(Pass::Recover),
            pusher_position: pusher,
            pusher_velocity: [0.0; 2],
            block_centre: [block.position[0] + cog[0], block.position[1] + cog[1]],
            block_angle: block.angle,
            block_twist: ([0.0; 2], 0.0),
        };
        physics.solve();
        physics
    }

    /// The pusher's centre, pixels.
    pub(crate) fn pusher(&self) -> [f64; 2] {
        self.pusher_position
    }

    /// Where the block's frame lies; the angle is not wrapped.
    pub(crate) fn block(&self) -> Pose {
        let cog = rotate(BLOCK_COG, self.block_angle);
        Pose {
            position: [self.block_centre[0] - cog[0], self.block_centre[1] - cog[1]],
            angle: self.block_angle,
        }
    }

    /// One [`TICK_S`]: the pusher is drawn to `target` (pixels), everything moves, contacts are solved.
    pub(crate) fn tick(&mut self, target: [f64; 2]) {
        for (axis, goal) in target.into_iter().enumerate() {
            let pull = K_P * (goal - self.pusher_position[axis]) - K_V * self.pusher_velocity[axis];
            self.pusher_velocity[axis] += pull * TICK_S;
            self.pusher_position[axis] += self.pusher_velocity[axis] * TICK_S;
            self.block_centre[axis] += self.block_twist.0[axis] * TICK_S;
        }
        self.block_angle += self.block_twist.1 * TICK_S;
        self.solve();
    }

    /// Sets `block_twist` from the contacts at the present placement.
    fn solve(&mut self) {
        let (pusher, block) = (self.pusher_position, self.block());
        let (push, touching) = self.pushing.solve(pusher, self.pusher_velocity, block);
        self.block_twist = push;
        if touching > 0 {
            let (recover, _) = self.recovering.solve(pusher, [0.0; 2], block);
            for axis in 0..2 {
                self.block_twist.0[axis] += recover.0[axis];
            }
            self.block_twist.1 += recover.1;
        }
    }
}

/// A world of rapier's that is placed, solved once, and placed anew; where it arrives is not used.
struct Solver {
    world: PhysicsWorld,
    pusher: RigidBodyHandle,
    block: RigidBodyHandle,
    pass: Pass,
}

impl Solver {
    fn new(pass: Pass) -> Self {
        let mut world = PhysicsWorld::new();
        world.gravity = Vector::ZERO;
        world.integration_parameters = parameters(pass);
        for wall in walls() {
            world.insert_collider(wall, None);
        }
        let (pusher, _) = world.insert(
            RigidBodyBuilder::kinematic_velocity_based().can_sleep(false),
            ColliderBuilder::ball(PUSHER_RADIUS).friction(0.0),
        );
        let cog = Vector::new(BLOCK_COG[0], BLOCK_COG[1]);
        let block = world.insert_body(
            RigidBodyBuilder::dynamic().can_sleep(false).additional_mass_properties(MassProperties::new(
                cog,
                BLOCK_MASS,
                BLOCK_INERTIA,
            )),
        );
        for [least, _, greatest, _] in BLOCK_RECTANGLES {
            let half = [(greatest[0] - least[0]) / 2.0, (greatest[1] - least[1]) / 2.0];
            let collider = ColliderBuilder::cuboid(half[0], half[1])
                .translation(Vector::new(least[0] + half[0], least[1] + half[1]))
                .density(0.0)
                .friction(0.0)
                .active_hooks(ActiveHooks::MODIFY_SOLVER_CONTACTS);
            world.insert_collider(collider, Some(block));
        }
        Self { world, pusher, block, pass }
    }

    /// The twist that the contacts give a block at rest, and how many contacts there are.
    fn solve(&mut self, pusher: [f64; 2], pusher_velocity: [f64; 2], block: Pose) -> (Twist, usize) {
        if let Some(body) = self.world.bodies.get_mut(self.pusher) {
            body.set_translation(Vector::from(pusher), true);
            body.set_linvel(Vector::from(pusher_velocity), true);
        }
        if let Some(body) = self.world.bodies.get_mut(self.block) {
            body.set_position(RapierPose::new(Vector::from(block.position), block.angle), true);
            body.set_linvel(Vector::ZERO, true);
            body.set_angvel(0.0, true);
        }
        let law = ContactLaw { pass: self.pass, touching: AtomicUsize::new(0) };
        self.world.step_with_events(&law, &());
        let block = &self.world.bodies[self.block];
        let velocity = block.linvel();
        (([velocity.x, velocity.y], block.angvel()), law.touching.load(Ordering::Relaxed))
    }
}

/// What a solve is for.
#[derive(Clone, Copy)]
enum Pass {
    /// Keep touching bodies from moving into each other.
    Push,
    /// Take back overlap.
    Recover,
}

/// Rewrites the contacts rapier found into those that a pass sees.
struct ContactLaw {
    pass: Pass,
    touching: AtomicUsize,
}

impl PhysicsHooks for ContactLaw {
    fn modify_solver_contacts(&self, context: &mut ContactModificationContext) {
        let Some(manifold) = context.rigid_mut() else { return };
        manifold.solver_contacts.retain(|contact| contact.dist <= 0.0);
        for contact in manifold.solver_contacts.iter_mut() {
            contact.dist = match self.pass {
                Pass::Push => 0.0,
                Pass::Recover => (contact.dist + SLOP).min(0.0),
            };
        }
        self.touching.fetch_add(manifold.solver_contacts.len(), Ordering::Relaxed);
    }
}

/// One rigid solve per step and nothing ahead of contact. As in Chipmunk, only pushing starts from the impulses of
/// the tick before.
fn parameters(pass: Pass) -> IntegrationParameters {
    // rapier's recovery is a spring of natural frequency f and damping ratio z that removes w / (w + 2 z) of the
    // overlap per step, w = 2 pi f dt, and is compliant by a term that falls with z^2: a large z makes it rigid.
    let damping_ratio = 1e6;
    let w = 2.0 * damping_ratio * RECOVERY / (1.0 - RECOVERY);
    let softness = SpringCoefficients::new(w / (std::f64::consts::TAU * TICK_S), damping_ratio);
    IntegrationParameters {
        dt: TICK_S,
        contact_softness: softness,
        static_contact_softness: softness,
        warmstart_coefficient: match pass {
            Pass::Push => 1.0,
            Pass::Recover => 0.0,
        },
        normalized_max_corrective_velocity: f64::MAX,
        normalized_max_linear_velocity: f64::MAX,
        normalized_prediction_distance: 0.0,
        num_solver_iterations: 1,
        num_internal_pgs_iterations: SWEEPS,
        num_internal_stabilization_iterations: 0,
        max_ccd_substeps: 0,
        contact_recycling: false,
        ..IntegrationParameters::default()
    }
}

/// The four walls.
fn walls() -> [Collider; 4] {
    let [low, high] = WALL_SPAN;
    [
        [[low, high], [low, low]],
        [[low, low], [high, low]],
        [[high, low], [high, high]],
        [[low, high], [high, high]],
    ]
    .map(|[a, b]| {
        ColliderBuilder::capsule_from_endpoints(Vector::from(a), Vector::from(b), WALL_RADIUS)
            .friction(0.0)
            .build()
    })
}
