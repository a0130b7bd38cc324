//! What the system says of this process, where it is Linux.

use super::families as family;
use super::text::Page;

/// Linux counts processor time for programs in hundredths of a second (`USER_HZ`), on all machines that we build for.
const TICKS_PER_S: f64 = 100.0;

/// Adds what the system tells; nothing where it tells nothing.
pub fn tell(page: &mut Page) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(ticks) = cpu_ticks(&read("/proc/self/stat")) {
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        page.seconds(&family::PROCESS_CPU, &[], ticks as f64 / TICKS_PER_S);
    }
    if let Some(bytes) = resident_bytes(&read("/proc/self/status")) {
        page.number(&family::PROCESS_MEMORY, &[], bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the look itself.
        page.number(&family::PROCESS_FDS, &[], (open.count() as u64).saturating_sub(1));
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        page.number(&family::PROCESS_FDS_MAX, &[], most);
    }
}

/// User and system time: the fields 14 and 15 of proc_pid_stat(5). The second may hold anything, in brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_tells_is_read() {
        let stat = "7 (post) haste) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 100 1 2";
        assert_eq!((cpu_ticks(stat), cpu_ticks("")), (Some(300), None));
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }
}
