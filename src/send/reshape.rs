//! Payloads after a transform. Large ones are made on threads apart, so that no transform holds up the runtime.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Delivery, Failure};
use crate::domain::event::Identity;
use crate::domain::transform::{Context, Transform, TransformError};

/// Payloads of at least so many bytes are reshaped on a thread apart.
const LARGE_BYTES: usize = 64 << 10;
/// Most threads that reshape at one time.
const THREADS: usize = 2;

/// One for the process, as its processors are. Payloads that find no place wait for one.
static PLACES: Semaphore = Semaphore::const_new(THREADS);

/// A delivery's payload after a transform.
///
/// # Errors
/// The transform can't be applied to this payload: it never will be.
pub async fn reshape(
    transform: Arc<Transform>,
    payload: Bytes,
    delivery: &Delivery,
    limit_bytes: usize,
) -> Result<Bytes, Failure> {
    let (identity, event_type, received_at) =
        (delivery.identity.clone(), delivery.event_type.clone(), delivery.received_at);
    let shaped = apart(payload.len(), move || {
        apply(&transform, &payload, &identity, &event_type, received_at, limit_bytes)
    });
    shaped.await.map_err(|error| Failure::transport(&format!("transform_{}", error.code()), error, false))
}

fn apply(
    transform: &Transform,
    payload: &[u8],
    identity: &Identity,
    event_type: &str,
    received_at: Timestamp,
    limit_bytes: usize,
) -> Result<Bytes, TransformError> {
    let context = Context::new(identity, event_type, received_at);
    Ok(Bytes::from(transform.apply(payload, &context, limit_bytes)?.into_owned()))
}

/// The result of `work` on a payload of so many bytes: made here where that is little, else on a thread apart.
///
/// # Panics
/// Where `work` does.
pub async fn apart<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes < LARGE_BYTES {
        return work();
    }
    // Never closed, so an error can't be.
    let place = PLACES.acquire().await;
    let done = tokio::task::spawn_blocking(move || {
        // Held until the work ends, whether or not anybody still waits for it.
        let _place = place;
        work()
    });
    done.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the only thread of the runtime, or does not.
    async fn turns_meanwhile(bytes: usize) -> usize {
        let (release, held) = std::sync::mpsc::channel();
        let work = apart(bytes, move || held.recv_timeout(std::time::Duration::from_secs(30)).is_ok());
        let mut turns = 0;
        let others = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
                turns += 1;
            }
            release.send(()).expect("it is being worked on");
        };
        let (ended, ()) = tokio::join!(work, others);
        assert!(ended, "it waited for the others");
        turns
    }

    #[tokio::test]
    async fn large_payloads_leave_the_runtime_to_others() {
        assert_eq!(turns_meanwhile(LARGE_BYTES).await, 100);
        let others = (0..4 * THREADS).map(|_| turns_meanwhile(1 << 20));
        assert!(futures_util::future::join_all(others).await.into_iter().all(|turns| turns == 100));
        assert_eq!(PLACES.available_permits(), THREADS);
    }

    #[tokio::test]
    async fn small_payloads_are_made_in_place() {
        let here = std::thread::current().id();
        assert_eq!(apart(LARGE_BYTES - 1, move || std::thread::current().id()).await, here);
        assert_ne!(apart(LARGE_BYTES, move || std::thread::current().id()).await, here);
    }
}
