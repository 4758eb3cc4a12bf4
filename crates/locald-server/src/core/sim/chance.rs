//! Dice, and what they make of a project file.

use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::spec::{Condition, Dependency, Kind, RestartWhen, ServiceSpec, Watch};

/// A small generator of pseudo random numbers (xorshift64*, Vigna 2016): the same seed, the same schedule, for ever.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    pub(super) fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

pub(super) fn some_health(dice: &mut Dice, kind: Kind) -> Vec<HealthCheck> {
    let has_some = kind != Kind::Job && dice.one_in(3);
    has_some.then(|| HealthCheck::of(Probe::Tcp { port: Some(1) })).into_iter().collect()
}

pub(super) fn some_policy(dice: &mut Dice) -> RestartWhen {
    [RestartWhen::No, RestartWhen::OnFailure, RestartWhen::Always][usize::try_from(dice.roll(3)).expect("small")]
}

pub(super) fn some_watch(dice: &mut Dice) -> Option<Watch> {
    dice.one_in(3).then(|| Watch { paths: vec!["src".into()], debounce: Duration::from_millis(dice.roll(200)) })
}

/// On earlier ones only, so that there is no circle.
pub(super) fn some_dependencies(dice: &mut Dice, earlier: &[ServiceSpec]) -> Vec<Dependency> {
    let mut chosen = Vec::new();
    for earlier in earlier {
        if dice.one_in(3) {
            let condition = match earlier.kind {
                _ if dice.one_in(3) => Condition::Started,
                Kind::Job => Condition::Completed,
                Kind::Service | Kind::Forking => Condition::Ready,
            };
            chosen.push(Dependency { service: earlier.name.clone(), condition, restart: dice.one_in(3) });
        }
    }
    chosen
}
