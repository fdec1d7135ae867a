//! Who commands a robot: one session at a time.

use zenoh::Wait;
use zenoh::liveliness::LivelinessToken;

use super::{Bus, BusError};

/// Where sessions say which topics they command.
const CLAIMS: &str = "refrain/commands";

/// The right to command on a topic, until dropped.
pub struct Claim {
    _token: LivelinessToken,
}

impl Bus {
    /// Claims a topic for this session; refused when another one that can be reached has. Two that claim at the same time
    /// may both be refused, never both granted.
    pub fn claim(&self, topic: &str) -> Result<Claim, BusError> {
        let key = format!("{CLAIMS}/{}", topic.trim_matches('/'));
        let own = format!("{key}/{}", self.session.zid());
        let failed = |error: zenoh::Error| BusError::Declare { key: key.clone(), reason: error.to_string() };
        let token = self.session.liveliness().declare_token(own.clone()).wait().map_err(failed)?;
        let others = self.session.liveliness().get(format!("{key}/*")).wait().map_err(failed)?;
        let other = others
            .into_iter()
            .filter_map(|reply| Some(reply.result().ok()?.key_expr().to_string()))
            .find(|found| *found != own);
        match other {
            None => Ok(Claim { _token: token }),
            Some(found) => {
                let who = found.rsplit('/').next().unwrap_or_default().to_owned();
                Err(BusError::Claimed { topic: topic.to_owned(), who })
            }
        }
    }
}
