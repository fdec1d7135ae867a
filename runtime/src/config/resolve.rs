//! Checking a [`RobotConfig`] against a policy.

use refrain_policies::config::PolicyConfig;

use super::fields::Stamped;
use super::{
    ActionSection, BusSection, CommandKind, CommandWriting, ConfigError, Convention, FORMAT, JointSection,
    KindChoice, MessageKind, MessageReading, Robot, RobotConfig, StampChoice, Topic, TopicSection,
};
use crate::bus::names::is_ros_name;
use crate::bus::presence::is_key_expression;
use crate::chunk::{Interpolation, Path};
use crate::clock::{self, from_millis};
use crate::control::{ControlConfig, Late};
use crate::join::Join;
use crate::observation::{IntakeConfig, Part, Start};
use crate::planner::Replan;
use crate::pose::Rotation;
use crate::safety::{Kind, Limits, MAX_JOINTS};
use crate::threads::Scheduling;

impl RobotConfig {
    /// What the threads are made from, or everything that is wrong.
    pub fn resolve(&self, policy: &PolicyConfig) -> Result<Robot, ConfigError> {
        let mut found = Vec::new();
        self.problems(policy, &mut found);
        let (topics, parts) = self.topics(policy, &mut found);
        let (limits, starts) = self.action.joints(policy, &mut found);
        let command = self.action.command(policy, &mut found);
        let rotations = self.action.rotations(policy, &mut found);
        let workspace = self.action.workspace(policy, &mut found);
        let (cameras, sight) = self.cameras(policy, &mut found);
        if !found.is_empty() {
            return Err(ConfigError::Problems(found));
        }
        let action_period = clock::period(policy.rate_hz);
        let architecture = &policy.architecture;
        let replan_after = self.chunk.replan_after.unwrap_or(architecture.n_action_steps);
        let replan = match self.chunk.replan_hz {
            _ if self.chunk.replan_always => Replan::Always,
            Some(rate) => Replan::Every(clock::period(rate)),
            None => Replan::After(replan_after),
        };
        let steps = architecture.tokens() - architecture.executed().start;
        let end = steps as i64 * action_period;
        let default_deadline = (replan_after as i64 + 2) * action_period;
        let deadline = self.chunk.deadline_ms.map_or(default_deadline, from_millis);
        // A chunk is executed until the one after it is ready.
        let budget = match replan {
            Replan::After(actions) => deadline - actions as i64 * action_period,
            Replan::Every(span) => span.min(deadline - span),
            Replan::Always => deadline / 2,
        };
        let shadow = self.action.shadow;
        let place = if shadow { "/shadow" } else { "" };
        let named = |topic: &Option<String>, default| {
            topic.clone().unwrap_or(format!("{}{place}/{default}", self.name))
        };
        let joint = |name: &String| self.action.find(name).and_then(|j| j.joint.clone());
        Ok(Robot {
            name: self.name.clone(),
            seed: self.policy.seed,
            episode: 0,
            control: ControlConfig {
                period: clock::period(self.control.rate_hz),
                path: Path { interpolation: self.control.interpolation, rotations },
                chunk_deadline: deadline,
                late: self.chunk.late.unwrap_or(Late::Continue),
                max_chunk_age: end,
                max_observation_age: from_millis(self.observation.max_age_ms),
                command_validity: from_millis(self.action.valid_ms),
                outside: self.action.outside.into(),
                limits,
                workspace,
            },
            scheduling: Scheduling { priority: self.control.priority, cpu: self.control.cpu },
            lock_memory: self.control.lock_memory,
            stay_awake: self.control.stay_awake,
            replan,
            join: self.chunk.join,
            budget,
            action_period,
            intake: IntakeConfig {
                size: policy.observation.size(),
                steps: architecture.n_obs_steps,
                period: action_period,
                max_age: from_millis(self.observation.max_age_ms),
                clock_tolerance: from_millis(self.observation.clock_tolerance_ms),
                parts,
                starts,
                sight,
            },
            topics,
            cameras,
            joints: policy.action.names.iter().map(|n| joint(n).unwrap_or(n.clone())).collect(),
            command_topic: self.action.command_topic.clone(),
            command,
            shadow,
            trajectory_topic: self.action.trajectory_topic.clone(),
            controller: self.action.controller.clone(),
            stop_topic: named(&self.bus.stop_topic, "stop"),
            reset_topic: named(&self.bus.reset_topic, "reset"),
            takeover_topic: named(&self.bus.takeover_topic, "takeover"),
            handback_topic: named(&self.bus.handback_topic, "handback"),
            enable_service: named(&self.bus.enable_service, "enable"),
            diagnostics_topic: self.bus.diagnostics_topic.clone().unwrap_or("diagnostics".into()),
            mode_topic: named(&self.bus.mode_topic, "mode"),
            bus: BusSection {
                node: Some(
                    self.bus.node.clone().unwrap_or(self.name.clone()) + if shadow { "_shadow" } else { "" },
                ),
                ..self.bus.clone()
            },
        })
    }

    fn problems(&self, policy: &PolicyConfig, found: &mut Vec<String>) {
        let mut expect = |good: bool, problem: String| {
            if !good {
                found.push(problem);
            }
        };
        // From a microsecond on: less is 0 in nanoseconds, or no time to do anything in.
        let a_span = |millis: f64| (0.001..=1e9).contains(&millis);
        expect(self.format == FORMAT, format!("format: expected {FORMAT}, got {}", self.format));
        expect(
            !self.name.is_empty() && !self.name.contains(is_wild),
            format!("name: expected a name without spaces or any of * $ # ?, got {:?}", self.name),
        );
        let rate = self.control.rate_hz;
        expect((10.0..=1000.0).contains(&rate), format!("control.rate_hz: expected 10 to 1000, got {rate}"));
        expect(
            rate >= policy.rate_hz || rate.is_nan(),
            format!("control.rate_hz: {rate} is below the policy's rate of {} Hz", policy.rate_hz),
        );
        if let Some(priority) = self.control.priority {
            let good = (1..=99).contains(&priority);
            expect(good, format!("control.priority: expected 1 to 99, got {priority}"));
        }
        let steps = policy.architecture.tokens() - policy.architecture.executed().start;
        if let Some(n) = self.chunk.replan_after {
            expect(
                (1..=steps).contains(&n),
                format!("chunk.replan_after: expected 1 to the policy's {steps} predicted actions, got {n}"),
            );
        }
        if let Some(rate) = self.chunk.replan_hz {
            expect(
                rate > 0.0 && rate <= 1000.0,
                format!("chunk.replan_hz: expected more than 0 and at most 1000, got {rate}"),
            );
        }
        let given =
            [self.chunk.replan_after.is_some(), self.chunk.replan_hz.is_some(), self.chunk.replan_always];
        expect(
            given.iter().filter(|given| **given).count() <= 1,
            "chunk: expected one of replan_after, replan_hz and replan_always".into(),
        );
        if let Join::Ensemble { decay } = self.chunk.join {
            expect(decay.is_finite(), format!("chunk.join.decay: expected a finite number, got {decay}"));
        }
        if let Some(deadline) = self.chunk.deadline_ms {
            expect(a_span(deadline), format!("chunk.deadline_ms: expected 0.001 to 1e9, got {deadline}"));
        }
        let o = &self.observation;
        expect(
            a_span(o.max_age_ms),
            format!("observation.max_age_ms: expected 0.001 to 1e9, got {}", o.max_age_ms),
        );
        expect(
            o.clock_tolerance_ms >= 0.0 && o.clock_tolerance_ms <= 1e9,
            format!("observation.clock_tolerance_ms: expected 0 or more, got {}", o.clock_tolerance_ms),
        );
        let valid = self.action.valid_ms;
        expect(a_span(valid), format!("action.valid_ms: expected 0.001 to 1e9, got {valid}"));
        expect(
            self.action.command_topic.is_some() || self.action.trajectory_topic.is_some(),
            "action: expected command_topic or trajectory_topic; commands have nowhere to go".into(),
        );
        expect(
            !self.action.shadow || self.action.command_topic.is_some(),
            "action.shadow: needs command_topic, where whoever is in charge commands".into(),
        );
        expect(
            self.action.trajectory_topic.is_none() || self.control.interpolation == Interpolation::Linear,
            "control.interpolation: trajectory_topic needs \"linear\", as the controller interpolates so"
                .into(),
        );
        if let Some(tokens) = self.action.controller.as_ref().filter(|tokens| !is_key_expression(tokens)) {
            expect(false, format!("action.controller: expected a zenoh key expression, got {tokens:?}"));
        }
        if let Some(record) = &self.record {
            expect(
                record.file_mb > 0 && record.file_mb <= 1 << 20 && record.files > 0,
                "record: expected file_mb from 1 to 1048576, and files above 0".into(),
            );
        }
        if let Some(metrics) = &self.metrics {
            expect(
                metrics.listen.ip().is_loopback(),
                format!("metrics.listen: expected a loopback address, got {}", metrics.listen),
            );
        }
        expect(
            self.bus.zenoh.is_none() || self.bus.zenoh_file.is_none(),
            "bus: expected zenoh or zenoh_file, got both".into(),
        );
        let ros = self.bus.convention == Convention::RmwZenoh;
        let node = self.bus.node.as_ref().unwrap_or(&self.name);
        expect(
            !ros || is_ros_name(node),
            format!("bus.node: expected letters, digits and _ as ROS has it, got {node:?}"),
        );
        let domain = self.bus.domain;
        expect(domain <= 232, format!("bus.domain: expected 0 to 232, got {domain}"));
        let mut seen: Vec<&str> = Vec::new();
        let topics = self.observation.topics.iter().map(|t| ("observation.topics", Some(&t.topic)));
        let images = self.vision.iter().flat_map(|vision| &vision.cameras);
        let images = images.map(|camera| ("vision.cameras", Some(&camera.topic)));
        for (key, topic) in topics.chain(images).chain([
            ("action.command_topic", self.action.command_topic.as_ref()),
            ("action.trajectory_topic", self.action.trajectory_topic.as_ref()),
            ("bus.stop_topic", self.bus.stop_topic.as_ref()),
            ("bus.reset_topic", self.bus.reset_topic.as_ref()),
            ("bus.enable_service", self.bus.enable_service.as_ref()),
            ("bus.diagnostics_topic", self.bus.diagnostics_topic.as_ref()),
            ("bus.mode_topic", self.bus.mode_topic.as_ref()),
            ("bus.takeover_topic", self.bus.takeover_topic.as_ref()),
            ("bus.handback_topic", self.bus.handback_topic.as_ref()),
        ]) {
            let Some(topic) = topic else { continue };
            let bare = topic.trim_matches('/');
            expect(
                !bare.is_empty() && !bare.contains(is_wild) && !bare.split('/').any(str::is_empty),
                format!("{key}: expected a topic such as \"robot/joint_states\", got {topic:?}"),
            );
            expect(
                !ros || bare.split('/').all(is_ros_name),
                format!("{key}: ROS topics have letters, digits, _ and / only, got {topic:?}"),
            );
            expect(!seen.contains(&bare), format!("{key}: {topic:?} stands twice"));
            seen.push(bare);
        }
    }

    fn topics(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> (Vec<Topic>, Vec<Part>) {
        let names = &policy.observation.names;
        let mut given = vec![0; names.len()];
        let mut topics = Vec::new();
        let mut parts = Vec::new();
        for section in &self.observation.topics {
            let elements = if section.elements.is_empty() { names } else { &section.elements };
            let key = format!("observation.topics {:?}", section.topic);
            let mut places = Vec::new();
            for element in elements {
                match names.iter().position(|name| name == element) {
                    Some(place) => {
                        given[place] += 1;
                        places.push(place);
                    }
                    None => found.push(format!(
                        "{key}: the policy observes no {element:?}; it observes {}",
                        names.join(", ")
                    )),
                }
            }
            topics.push(Topic {
                topic: section.topic.clone(),
                reading: section.reading(elements, &key, found),
                latched: section.latched,
            });
            parts.push(Part { places, arrival_is_stamp: section.stamp == StampChoice::Arrival });
        }
        for (name, times) in names.iter().zip(given) {
            if times != 1 {
                found.push(format!("observation.topics: {name:?} is given {times} times, expected once"));
            }
        }
        (topics, parts)
    }
}

impl TopicSection {
    fn reading(&self, elements: &[String], key: &str, found: &mut Vec<String>) -> MessageReading {
        if self.kind != MessageKind::JointState && (!self.joints.is_empty() || self.field.is_some()) {
            found.push(format!("{key}: joints and field belong to sensor_msgs/JointState only"));
        }
        let stamped = match self.kind {
            MessageKind::Float64MultiArray | MessageKind::JointState => None,
            MessageKind::Imu => Some(Stamped::Imu),
            MessageKind::PoseStamped => Some(Stamped::Pose),
            MessageKind::TwistStamped => Some(Stamped::Twist),
        };
        if let Some(kind) = stamped {
            return MessageReading::Stamped { kind, places: self.places(kind, elements, key, found) };
        }
        if !self.fields.is_empty() {
            found.push(format!("{key}: fields belong to stamped messages (Imu, PoseStamped, TwistStamped)"));
        }
        match self.kind {
            MessageKind::JointState => {
                if elements.len() > MAX_JOINTS {
                    found.push(format!("{key}: {} joints, at most {MAX_JOINTS} are read", elements.len()));
                }
                let joints = if self.joints.is_empty() { elements } else { &self.joints };
                if joints.len() != elements.len() {
                    found.push(format!(
                        "{key}.joints: expected {} joints, one per element, got {}",
                        elements.len(),
                        joints.len()
                    ));
                }
                MessageReading::Joints { names: joints.to_vec(), field: self.field.unwrap_or_default() }
            }
            _ => MessageReading::Array { size: elements.len() },
        }
    }

    /// For each element, its number's place in the message.
    fn places(&self, kind: Stamped, elements: &[String], key: &str, found: &mut Vec<String>) -> Vec<usize> {
        let all = kind.names();
        let given: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        let names = if given.is_empty() { &all } else { &given };
        if names.len() != elements.len() {
            found.push(format!(
                "{key}.fields: expected {} numbers, one per element, got {}; name them: {}",
                elements.len(),
                names.len(),
                all.join(", ")
            ));
        }
        let mut places = Vec::new();
        for name in names {
            match kind.place(name) {
                Some(place) => places.push(place),
                None => found.push(format!("{key}.fields: no {name:?} in it, but {}", all.join(", "))),
            }
        }
        places
    }
}

impl ActionSection {
    fn find(&self, name: &str) -> Option<&JointSection> {
        self.joints.iter().find(|joint| joint.name == name)
    }

    fn rotations(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> Vec<Rotation> {
        let mut seen: Vec<&String> = Vec::new();
        let mut rotations = Vec::new();
        for names in &self.rotations {
            let place = |name: &String| policy.action.names.iter().position(|known| known == name);
            let places: Vec<usize> = names.iter().filter_map(place).collect();
            match Rotation::of(&places) {
                Some(rotation) if names.len() == places.len() => rotations.push(rotation),
                _ => found.push(format!(
                    "action.rotations: expected six or four of the policy's actions, got {}",
                    names.join(", ")
                )),
            }
            if let Some(name) = names.iter().find(|name| seen.contains(name)) {
                found.push(format!("action.rotations: {name:?} stands twice"));
            }
            seen.extend(names);
        }
        rotations
    }

    fn joints(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> (Vec<Limits>, Vec<Start>) {
        let names = &policy.action.names;
        if names.len() > MAX_JOINTS {
            found.push(format!("action: the policy has {} joints, at most {MAX_JOINTS} run", names.len()));
        }
        for (i, joint) in self.joints.iter().enumerate() {
            if !names.contains(&joint.name) {
                let known = names.join(", ");
                found.push(format!("action.joints: the policy moves no {:?}; it moves {known}", joint.name));
            }
            if self.joints[..i].iter().any(|other| other.name == joint.name) {
                found.push(format!("action.joints: {:?} stands twice", joint.name));
            }
        }
        let mut limits = Vec::new();
        let mut starts = Vec::new();
        for name in names {
            match self.find(name) {
                Some(joint) => {
                    limits.push(joint.limits(found));
                    starts.push(joint.start(policy, found));
                }
                None => found.push(format!(
                    "action.joints: {name:?} has no limits; give position, velocity and acceleration"
                )),
            }
        }
        (limits, starts)
    }
}

impl ActionSection {
    /// How commands are written.
    fn command(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> CommandWriting {
        let (kind, wanted) = match self.command_kind {
            CommandKind::Float64MultiArray => {
                if !self.command_frame.is_empty() || self.joints.iter().any(|joint| joint.field.is_some()) {
                    found.push("action: command_frame and field belong to stamped commands only".into());
                }
                return CommandWriting::Array;
            }
            CommandKind::PoseStamped => (Stamped::Pose, KindChoice::Position),
            CommandKind::TwistStamped => (Stamped::Twist, KindChoice::Velocity),
        };
        let mut places = Vec::new();
        for joint in policy.action.names.iter().filter_map(|name| self.find(name)) {
            let key = format!("action.joints {:?}", joint.name);
            if joint.kind != wanted {
                found.push(format!("{key}.kind: {:?} commands need {wanted:?} joints", self.command_kind));
            }
            match joint.field.as_deref().map(|field| (field, kind.place(field))) {
                Some((_, Some(place))) if !places.contains(&place) => places.push(place),
                Some((field, Some(_))) => found.push(format!("{key}.field: {field:?} is set twice")),
                _ => found.push(format!("{key}.field: expected one of {}", kind.names().join(", "))),
            }
        }
        let turned = places.iter().filter(|place| **place >= Stamped::ORIENTATION).count();
        if kind == Stamped::Pose && turned != 0 && turned != 4 {
            found.push("action.joints: a pose's orientation needs all of its x, y, z and w".into());
        }
        CommandWriting::Stamped { kind, frame: self.command_frame.clone(), places }
    }
}

impl JointSection {
    fn limits(&self, found: &mut Vec<String>) -> Limits {
        let key = format!("action.joints {:?}", self.name);
        let kind = match self.kind {
            KindChoice::Position => Kind::Position,
            KindChoice::Velocity => Kind::Velocity,
            KindChoice::Discrete => self.discrete(&key, found),
        };
        if self.thresholds.is_some() && self.kind != KindChoice::Discrete {
            found.push(format!("{key}.thresholds: belong to discrete joints only; leave them out"));
        }
        match (kind, self.position) {
            (Kind::Position | Kind::Discrete { .. }, None) => {
                found.push(format!("{key}: position limits are missing; give position = [low, high]"));
            }
            (Kind::Position | Kind::Discrete { .. }, Some([low, high]))
                if !(low < high && low.is_finite() && high.is_finite()) =>
            {
                found.push(format!("{key}.position: expected low < high, got [{low}, {high}]"));
            }
            (Kind::Velocity, Some(_)) => {
                found.push(format!("{key}.position: a velocity joint has no position limits; leave it out"));
            }
            _ => {}
        }
        for (part, value) in [("velocity", self.velocity), ("acceleration", self.acceleration)] {
            if self.kind == KindChoice::Discrete {
                if value != 0.0 {
                    found.push(format!("{key}.{part}: a discrete joint has none; leave it out"));
                }
            } else if !(value > 0.0 && value.is_finite()) {
                found.push(format!("{key}.{part}: expected a finite number above 0, got {value}"));
            }
        }
        Limits {
            kind,
            position: self.position.unwrap_or([0.0, 0.0]),
            velocity: self.velocity,
            acceleration: self.acceleration,
        }
    }

    fn discrete(&self, key: &str, found: &mut Vec<String>) -> Kind {
        let [below, above] = self.thresholds.unwrap_or([f64::NAN; 2]);
        if !(below < above && below.is_finite() && above.is_finite()) {
            found.push(format!("{key}.thresholds: expected two numbers, the first below the second"));
        }
        Kind::Discrete { below, above }
    }

    fn start(&self, policy: &PolicyConfig, found: &mut Vec<String>) -> Start {
        let key = format!("action.joints {:?}", self.name);
        match (self.kind, &self.measured, self.start) {
            (KindChoice::Velocity, None, None) => Start::Fixed(0.0),
            (KindChoice::Velocity, ..) => {
                found.push(format!("{key}: a velocity joint starts at 0; leave out measured and start"));
                Start::Fixed(0.0)
            }
            (_, Some(element), None) => {
                match policy.observation.names.iter().position(|name| name == element) {
                    Some(place) => Start::Measured(place),
                    None => {
                        found.push(format!("{key}.measured: the policy observes no {element:?}"));
                        Start::Fixed(0.0)
                    }
                }
            }
            (_, None, Some(value)) if value.is_finite() => Start::Fixed(value),
            _ => {
                found.push(format!(
                    "{key}: expected measured (an observation element) or start (a finite number)"
                ));
                Start::Fixed(0.0)
            }
        }
    }
}

/// Characters that a topic cannot have: zenoh's wildcards and what URLs and shells trip over.
fn is_wild(c: char) -> bool {
    matches!(c, '*' | '$' | '#' | '?') || c.is_whitespace()
}
