//! A network before a Postgres server: it can be cut at any byte of a commit and of its answer, go silent, and lead
//! elsewhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How a client of Postgres says it: a simple query (protocol 3, "Message Formats").
pub const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// And what is answered: done, and ready for the next.
pub const ANSWER: &[u8] = b"C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I";

/// Where the connection of the next commit is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// After so many bytes of the commit, fewer than it has: it never happens.
    Commit(usize),
    /// After so many bytes of the answer: it has happened.
    Answer(usize),
}

/// A listener on loopback that passes everything on.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    target: Mutex<PathBuf>,
    /// Where the next commit is cut.
    cut: Mutex<Option<Cut>>,
    cuts_made: AtomicUsize,
    /// Nothing is passed on, either way.
    silent: watch::Sender<bool>,
    /// Grows with each cut of everything.
    generation: watch::Sender<usize>,
}

impl Proxy {
    pub async fn start(target: PathBuf) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            cut: Mutex::default(),
            cuts_made: AtomicUsize::new(0),
            silent: watch::Sender::new(false),
            generation: watch::Sender::new(0),
        });
        let passing = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let _ = client.set_nodelay(true);
                tokio::spawn(pass(Arc::clone(&passing), client));
            }
        });
        Self { address, shared, accepting: accepting.abort_handle() }
    }

    /// What a relay connects to.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres?sslmode=disable", self.address)
    }

    /// Cuts the connection of the next commit.
    pub fn cut_next(&self, cut: Cut) {
        *self.shared.cut.lock().unwrap() = Some(cut);
    }

    /// How many commits were cut so far.
    pub fn cuts_made(&self) -> usize {
        self.shared.cuts_made.load(Ordering::SeqCst)
    }

    /// Goes silent, as a network that lost its way: nothing comes through, and nobody is told. Or comes back.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.send_replace(silent);
    }

    /// Cuts every connection.
    pub fn cut_all(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, target: PathBuf) {
        *self.shared.target.lock().unwrap() = target;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_all();
    }
}

/// One connection, until one side ends it, or it is cut.
async fn pass(shared: Arc<Shared>, client: TcpStream) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    let mut silent = shared.silent.subscribe();
    let both = async {
        heard(&mut silent).await;
        let target = shared.target.lock().unwrap().clone();
        let Ok(server) = UnixStream::connect(target).await else { return };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        // Bytes of the answer that come through yet, once a commit's answer is to be cut.
        let left = Mutex::new(None);
        let mut silent_back = silent.clone();
        let forth = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                heard(&mut silent).await;
                let mut bytes = &buffer[..count];
                let cut = if bytes.ends_with(COMMIT) { shared.cut.lock().unwrap().take() } else { None };
                match cut {
                    Some(Cut::Commit(keep)) => bytes = &bytes[..count - COMMIT.len() + keep],
                    Some(Cut::Answer(keep)) => *left.lock().unwrap() = Some(keep),
                    None => {}
                }
                let written = to_server.write_all(bytes).await;
                if matches!(cut, Some(Cut::Commit(_))) {
                    shared.cuts_made.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if written.is_err() {
                    return;
                }
            }
        };
        let back = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                heard(&mut silent_back).await;
                let keep = *left.lock().unwrap();
                let passed = to_client.write_all(&buffer[..count.min(keep.unwrap_or(count))]).await;
                if keep.is_some() {
                    shared.cuts_made.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if passed.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = forth => {}
            () = back => {}
        }
    };
    tokio::select! {
        () = both => {}
        // Everything falls with this, and both sides see it.
        _ = generation.changed() => {}
    }
}

/// Returns once there is no silence.
async fn heard(silent: &mut watch::Receiver<bool>) {
    // The sender lives as long as the connection.
    let _ = silent.wait_for(|silent| !silent).await;
}
