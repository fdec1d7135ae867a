//! Services: any answered, those of `std_srvs` called.

use zenoh::Wait;
use zenoh::query::{ConsolidationMode, QueryTarget};

use super::attachment::Attachment;
use super::interface::{self, Interface};
use super::names::{Qos, Role};
use super::{Announced, Bus, BusError, cdr, declaring};
use crate::clock;
use crate::observation::Refusal;

/// Answers until dropped.
pub struct Service {
    _queryable: zenoh::query::Queryable<()>,
    _announced: Announced,
}

/// What a call is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was done.
    pub success: bool,
    /// What was done, or why not.
    pub message: String,
}

impl Bus {
    /// Offers a `std_srvs/Trigger` service. `on_call` is called on zenoh's threads.
    pub fn trigger(
        &self,
        topic: &str,
        on_call: impl Fn() -> Answer + Send + Sync + 'static,
    ) -> Result<Service, BusError> {
        self.answer(topic, &interface::TRIGGER, move |_| on_call())
    }

    /// Offers a `std_srvs/SetBool` service. `on_call` is called on zenoh's threads.
    pub fn set_bool(
        &self,
        topic: &str,
        on_call: impl Fn(bool) -> Answer + Send + Sync + 'static,
    ) -> Result<Service, BusError> {
        self.answer(topic, &interface::SET_BOOL, move |request| match cdr::read_bool(request) {
            Ok(value) => on_call(value),
            Err(refusal) => Answer { success: false, message: format!("not a SetBool request: {refusal}") },
        })
    }

    /// Calls a `std_srvs/Trigger` service; `None` when nobody answered.
    pub fn call_trigger(&self, topic: &str) -> Result<Option<Answer>, BusError> {
        self.call(topic, &interface::TRIGGER, &cdr::EMPTY_REQUEST)
    }

    /// Calls a `std_srvs/SetBool` service; `None` when nobody answered.
    pub fn call_set_bool(&self, topic: &str, value: bool) -> Result<Option<Answer>, BusError> {
        let mut request = Vec::new();
        cdr::write_bool(&mut request, value);
        self.call(topic, &interface::SET_BOOL, &request)
    }

    /// Both services' responses have the same fields.
    fn answer(
        &self,
        topic: &str,
        interface: &Interface,
        on_call: impl Fn(&[u8]) -> Answer + Send + Sync + 'static,
    ) -> Result<Service, BusError> {
        self.serve(topic, interface, move |request, response| {
            let answer = on_call(request);
            cdr::write_response(response, answer.success, &answer.message);
            Ok(())
        })
    }

    /// Offers a service: `on_call` writes the response to a request, on zenoh's threads. What it refuses is not answered.
    pub(super) fn serve(
        &self,
        topic: &str,
        interface: &Interface,
        on_call: impl Fn(&[u8], &mut Vec<u8>) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Result<Service, BusError> {
        let key = self.names.key(topic, interface);
        let reply_key = key.clone();
        let queryable = self
            .session
            .declare_queryable(key.clone())
            .complete(true)
            .callback(move |query| {
                let request = query.payload().map(|payload| payload.to_bytes()).unwrap_or_default();
                let mut response = Vec::new();
                if let Err(refusal) = on_call(&request, &mut response) {
                    tracing::debug!(%refusal, key = reply_key, "a request was refused");
                    return;
                }
                let attachment = query.attachment().map(|bytes| reply_attachment(&bytes.to_bytes()));
                let reply = query.reply(reply_key.clone(), response).attachment(attachment);
                if let Err(error) = reply.wait() {
                    tracing::warn!(%error, key = reply_key, "the reply was lost");
                }
            })
            .wait()
            .map_err(|error| declaring(key, &error))?;
        let announced = self.announce(Role::Server, topic, interface, Qos::DEFAULT)?;
        Ok(Service { _queryable: queryable, _announced: announced })
    }

    fn call(&self, topic: &str, interface: &Interface, request: &[u8]) -> Result<Option<Answer>, BusError> {
        let client = self.announce(Role::Client, topic, interface, Qos::DEFAULT)?;
        let (sequence, source) = (1, clock::read().wall);
        let attachment = Attachment { sequence, source, publisher: client.id, validity: None };
        let replies = self
            .session
            .get(client.key.clone())
            .target(QueryTarget::AllComplete)
            .consolidation(ConsolidationMode::None)
            .payload(request.to_vec())
            .attachment(attachment.to_bytes())
            .wait()
            .map_err(|error| BusError::Put { key: client.key.clone(), reason: error.to_string() })?;
        let reply = replies.into_iter().find_map(|reply| reply.into_result().ok());
        Ok(reply.and_then(|sample| cdr::read_response(&sample.payload().to_bytes()).ok()))
    }
}

/// The caller's number and identifier with the time of the answer; what is not rmw_zenoh's goes back as it came.
fn reply_attachment(bytes: &[u8]) -> Vec<u8> {
    Attachment::from_bytes(bytes).map_or(bytes.to_vec(), |caller| {
        Attachment { source: clock::read().wall, validity: None, ..caller }.to_bytes()
    })
}
