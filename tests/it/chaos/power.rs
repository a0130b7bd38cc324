//! The power may go at any moment after a 202: by then the operating system was told to put the events on the disk, and
//! had said that it did. Read from a trace of the system calls of a relay that runs.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use posthaste::mock::MockSvix;
use tempfile::TempDir;

use super::{sized, tell};
use crate::support::{HttpClient, RelayProcess, TestDatabase, bounded, mock_svix, side_by_side};

const ID: &str = "evt_power_";
const ID_LENGTH: usize = ID.len() + 6;
const STRACE: &str = "POSTHASTE_TEST_STRACE";
const MISSING: &str =
    "no strace to test with: run ./scripts/test, which installs it, or name it in POSTHASTE_TEST_STRACE";
const CALLS: &str =
    "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync";

/// One system call: the lines at which it was entered and had returned, in the order in which all calls were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    thread: u32,
    name: String,
    /// What is behind the name: descriptors with their paths, bytes as text.
    text: String,
    entered: usize,
    returned: usize,
}

impl Call {
    fn is_on(&self, ending: &str) -> bool {
        self.text.split_once('>').is_some_and(|(descriptor, _)| descriptor.ends_with(ending))
    }

    fn is_sync_of(&self, ending: &str) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
            && self.is_on(ending)
            && self.text.ends_with("= 0")
    }

    fn is_write_of(&self, ending: &str) -> bool {
        self.name.starts_with("pwrite") && self.is_on(ending)
    }

    fn is_read(&self) -> bool {
        self.name.starts_with("re")
    }
}

/// Reads what `strace -f -y` wrote: a line a call, or two where another thread came between.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<u32, Call> = HashMap::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        let (Ok(thread), rest) = (thread.parse(), rest.trim_start()) else { continue };
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(mut call) = unfinished.remove(&thread) else { continue };
            let (_, tail) = resumed.split_once(" resumed>").expect("strace's own words");
            call.text.push_str(tail);
            call.returned = line;
            calls.push(call);
            continue;
        }
        // Signals and ends have no parenthesis after a name.
        let Some((name, rest)) = rest.split_once('(') else { continue };
        let call = |text: &str| Call {
            thread,
            name: name.to_owned(),
            text: text.to_owned(),
            entered: line,
            returned: line,
        };
        match rest.strip_suffix("<unfinished ...>") {
            Some(begun) => _ = unfinished.insert(thread, call(begun.trim_end())),
            None => calls.push(call(rest)),
        }
    }
    calls
}

/// What is told of events: the first call that shows each, by its id.
struct Trace<'a> {
    /// Its request.
    arrived: HashMap<&'a str, &'a Call>,
    /// Its row, on its way into the WAL.
    written: HashMap<&'a str, &'a Call>,
    /// Its 202.
    answered: HashMap<&'a str, &'a Call>,
    /// Syncs of the WAL that succeeded.
    synced: Vec<&'a Call>,
}

impl<'a> Trace<'a> {
    fn of(calls: &'a [Call]) -> Self {
        let first = |is_wanted: &dyn Fn(&Call) -> bool| {
            let mut first = HashMap::new();
            for call in calls.iter().filter(|call| is_wanted(call)) {
                let ids = call.text.match_indices(ID).filter_map(|(at, _)| call.text.get(at..at + ID_LENGTH));
                ids.for_each(|id| _ = first.entry(id).or_insert(call));
            }
            first
        };
        Self {
            arrived: first(&|call| call.is_read() && call.text.contains("POST /notifications")),
            written: first(&|call| call.is_write_of("-wal")),
            answered: first(&|call| !call.is_read() && call.text.contains("HTTP/1.1 202")),
            synced: calls.iter().filter(|call| call.is_sync_of("-wal")).collect(),
        }
    }

    /// Whether, between the arrival of an event's request and the writing of its 202, its row was written to the WAL and
    /// the same thread synced the WAL after that.
    ///
    /// # Errors
    /// What was missing.
    fn is_synced_before_its_answer(&self, id: &str) -> Result<(), String> {
        let arrived = self.arrived.get(id).ok_or("its request was not seen")?.returned;
        let answered = self.answered.get(id).ok_or("its 202 was not seen")?.entered;
        let written = self.written.get(id).ok_or("its row was not seen in the WAL")?;
        if written.entered < arrived {
            return Err("its row was there before its request".into());
        }
        let after = |sync: &&&Call| sync.thread == written.thread && sync.entered > written.returned;
        match self.synced.iter().find(after).map(|sync| sync.returned) {
            Some(synced) if synced < answered => Ok(()),
            Some(synced) => {
                Err(format!("written at {}, answered at {answered}, synced at {synced}", written.entered))
            }
            None => Err("its row was never synced".into()),
        }
    }
}

/// Ids that stand for themselves wherever they are seen: of one length, so that none begins another.
fn id(number: usize) -> String {
    format!("{ID}{number:06}")
}

async fn post(relay: HttpClient, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let event = format!(r#"[{{"id":"{}","type":"order.created","data":{{"n":1}}}}]"#, id(number));
        assert_eq!(relay.post(event).await.status, 202);
    }
}

/// A relay under strace, which is its parent's grandchild: the process that is started is the relay itself.
fn start_traced(database: &TestDatabase, svix: &MockSvix, trace: &str) -> RelayProcess {
    let named = std::env::var(STRACE).ok().filter(|named| !named.is_empty());
    let strace = named.unwrap_or_else(|| "strace".into());
    let there = Command::new(&strace).arg("-V").stdout(Stdio::null()).status();
    assert!(there.is_ok_and(|status| status.success()), "{MISSING}");
    let relay = RelayProcess::command(database, svix, &[]);
    let mut command = Command::new(strace);
    command.args([
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-qq",
        "-s",
        "4200",
        "-e",
        "signal=none",
        "-e",
        CALLS,
        "-o",
        trace,
    ]);
    command.arg(relay.get_program()).args(relay.get_args());
    for (name, value) in relay.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    RelayProcess::launch(&mut command).unwrap_or_else(|ended| panic!("no relay under strace: {ended:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_202_is_written_before_its_events_are_synced() {
    // holds: 1, 11
    bounded(async {
        let (alone, together, producers) = sized((60, 25, 8), (500, 100, 32));
        let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
        let folder = TempDir::new().expect("a folder");
        let trace = folder.path().join("trace");
        let mut relay = start_traced(&database, &svix, trace.to_str().expect("UTF-8"));
        // One after another: each has a commit of its own.
        post((*relay).clone(), 0..alone).await;
        // Side by side: commits are shared.
        let requests = (0..producers).map(|producer| {
            let first = alone + producer * together;
            post(HttpClient::new(format!("http://{}", relay.address())), first..first + together)
        });
        side_by_side(requests).await;
        relay.signal("TERM");
        assert_eq!(relay.ended(Duration::from_secs(60)).await, Some(0));
        let text = String::from_utf8_lossy(&std::fs::read(&trace).expect("a trace")).into_owned();
        let calls = calls(&text);
        let all = alone + producers * together;
        let seen = Trace::of(&calls);
        let wrong: Vec<_> = (0..all)
            .filter_map(|number| Some((number, seen.is_synced_before_its_answer(&id(number)).err()?)))
            .collect();
        assert!(wrong.is_empty(), "{} of {all} were answered too early: {:?}", wrong.len(), wrong.first());
        let syncs = |ending| calls.iter().filter(|call| call.is_sync_of(ending)).count();
        let (wal, file) = (syncs("-wal"), syncs(".db"));
        assert!(wal >= alone, "one after another, each has a sync of its own: {wal}");
        tell(
            "synced before the 202",
            format!("SQLite: {all} of {all} requests ({alone} alone, {producers} at a time then), {wal} syncs of the WAL, \
                     {file} of the file"),
        );
    })
    .await;
}

#[test]
fn a_sync_that_comes_too_late_is_seen() {
    let arrive = r#"10 recvfrom(9<socket:[1]>, "POST /notifications HTTP/1.1\r\n\r\n[{\"id\":\"evt_power_000001\"}]", 8192, 0, NULL, NULL) = 60"#;
    let write = r#"11 pwrite64(5</tmp/ledger.db-wal>, "\2evt_power_000001", 4096, 56) = 4096"#;
    let sync = "11 fdatasync(5</tmp/ledger.db-wal>) = 0";
    let answer = r#"10 writev(9<socket:[1]>, [{iov_base="HTTP/1.1 202 Accepted\r\n\r\n{\"id\":\"evt_power_000001\"}", iov_len=40}], 1) = 40"#;
    let judged = |lines: &[&str]| Trace::of(&calls(&lines.join("\n"))).is_synced_before_its_answer(&id(1));
    assert_eq!(judged(&[arrive, write, sync, answer]), Ok(()));
    let late = [arrive, write, answer, sync];
    assert_eq!(judged(&late).unwrap_err(), "written at 1, answered at 2, synced at 3");
    assert!(judged(&[arrive, sync, write, answer]).is_err(), "a sync before the row says nothing of it");
    let other = "12 fdatasync(6</tmp/ledger.db-wal>) = 0";
    assert!(judged(&[arrive, write, other, answer]).is_err(), "nor does the checkpoint's");
    let file = "11 fdatasync(5</tmp/ledger.db>) = 0";
    assert!(judged(&[arrive, write, file, answer]).is_err(), "nor the database file's");
    let failed = "11 fdatasync(5</tmp/ledger.db-wal>) = -1 EIO (Input/output error)";
    assert!(judged(&[arrive, write, failed, answer]).is_err(), "nor one that failed");
    assert!(judged(&[arrive, sync, answer]).is_err(), "the row must be seen");
    // Begun before the answer, and not done.
    let (begun, done) =
        ("11 fdatasync(5</tmp/ledger.db-wal> <unfinished ...>", "11 <... fdatasync resumed>) = 0");
    assert!(judged(&[arrive, write, begun, answer, done]).is_err());
    assert_eq!(judged(&[arrive, write, begun, done, answer]), Ok(()));
}
