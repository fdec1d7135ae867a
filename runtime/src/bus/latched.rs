//! Latched topics (ROS: transient local): who comes late gets the last message.
//!
//! As zenoh-ext's advanced publishers and subscribers have it, which rmw_zenoh uses: the publisher keeps its last message and
//! answers for it on `<key>/@adv/pub/<session>/uhlc/_`, where it also has a liveliness token; a subscriber asks every
//! publisher that it sees there. Ours and zenoh-ext's understand each other (`tests/interop/graph.py` joins late with the
//! latter). Why it is ours: zenoh-ext's heartbeat publishes with `Block`, and it rebuilds zenoh with internal features.
//!
//! What it does not do: keep more than one message, or recover lost ones.

use std::sync::{Arc, Mutex, PoisonError};

use zenoh::liveliness::LivelinessToken;
use zenoh::query::ReplyKeyExpr;
use zenoh::sample::{Sample, SampleKind};
use zenoh::time::Timestamp;
use zenoh::{Session, Wait};

use super::{BusError, declaring};

/// What was sent last.
type Last = Arc<Mutex<Option<(Vec<u8>, Option<Vec<u8>>, Timestamp)>>>;

/// Keeps a publisher's last message and answers for it, until dropped.
pub(super) struct Memory {
    last: Last,
    _queryable: zenoh::query::Queryable<()>,
    _token: LivelinessToken,
}

/// Asks publishers for what they sent last, until dropped.
pub(super) struct Asking {
    _publishers: zenoh::pubsub::Subscriber<()>,
}

impl Memory {
    /// For a publisher on `key`.
    pub(super) fn open(session: &Session, key: &str) -> Result<Self, BusError> {
        let last = Last::default();
        let (told, topic) = (Arc::clone(&last), key.to_owned());
        let place = format!("{key}/@adv/pub/{}/uhlc/_", session.zid());
        let queryable = session
            .declare_queryable(place.clone())
            .callback(move |query| {
                let last = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some((payload, attachment, time)) = last else { return };
                let reply = query.reply(topic.clone(), payload).attachment(attachment).timestamp(time);
                if let Err(error) = reply.wait() {
                    tracing::warn!(%error, key = topic, "a late subscriber was not answered");
                }
            })
            .wait()
            .map_err(|error| declaring(place.clone(), &error))?;
        let token = session.liveliness().declare_token(place.clone()).wait();
        let token = token.map_err(|error| declaring(place, &error))?;
        Ok(Self { last, _queryable: queryable, _token: token })
    }

    /// Remembers what is sent at `time`.
    pub(super) fn keep(&self, payload: &[u8], attachment: Option<Vec<u8>>, time: Timestamp) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((payload.to_vec(), attachment, time));
    }
}

impl Asking {
    /// Hands on what publishers on `key` sent last, those that are there and those that come.
    pub(super) fn open(
        session: &Session,
        key: &str,
        hand_on: impl Fn(&Sample) + Send + Sync + 'static,
    ) -> Result<Self, BusError> {
        let (asker, hand_on) = (session.clone(), Arc::new(hand_on));
        let place = format!("{key}/@adv/pub/**");
        let publishers = session
            .liveliness()
            .declare_subscriber(place.clone())
            .history(true)
            .callback(move |token| {
                if token.kind() != SampleKind::Put {
                    return;
                }
                let hand_on = Arc::clone(&hand_on);
                let asked = asker
                    .get(format!("{}?_max=1", token.key_expr()))
                    .accept_replies(ReplyKeyExpr::Any)
                    .callback(move |reply| {
                        if let Ok(sample) = reply.result() {
                            hand_on(sample);
                        }
                    })
                    .wait();
                if let Err(error) = asked {
                    tracing::warn!(%error, "a latched publisher was not asked");
                }
            })
            .wait()
            .map_err(|error| declaring(place, &error))?;
        Ok(Self { _publishers: publishers })
    }
}
