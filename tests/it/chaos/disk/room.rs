//! Room on the disk, and how there is more of it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_posthaste");
/// For the file, its WAL and what stands beside them.
const SMALL_DISK: &str = "6m";
const LARGE_DISK: &str = "256m";
/// For each file.
const SMALL_FILE_BYTES: usize = 2 << 20;

/// A directory in which there is little room, until more is made.
pub struct Room {
    directory: TempDir,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A file system in memory: at its end writes fail with `ENOSPC`.
    Disk,
    /// A limit of the process: writes fail with `EFBIG`, which SQLite takes for a failing disk.
    File,
}

impl Room {
    /// A file system of its own. Where none may be mounted, the limit of a file has to do, and that is said.
    pub fn of_a_small_disk() -> Self {
        Self::of_a_disk(SMALL_DISK)
    }

    /// The same, of this size as `mount` has it.
    pub fn of_a_disk(size: &str) -> Self {
        let directory = directory();
        let size = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Self { directory, kind: Kind::Disk },
            refused => {
                eprintln!(
                    "NOT RUN on a disk of its own, but with a limited file: no tmpfs may be mounted ({refused:?})"
                );
                Self { directory, kind: Kind::File }
            }
        }
    }

    /// A limit on how large files may become.
    pub fn of_a_small_file() -> Self {
        Self { directory: directory(), kind: Kind::File }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What becomes a relay that has no more room than this.
    pub fn command(&self) -> Command {
        if self.kind == Kind::Disk {
            return Command::new(PROGRAM);
        }
        // The signal would end it before it saw the error. The limit is soft, so that it can be raised again.
        let limited = format!("trap '' XFSZ; exec prlimit --fsize={SMALL_FILE_BYTES}: \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited, PROGRAM]);
        command
    }

    /// Whether it is a file system of its own, which stays full.
    pub fn is_disk(&self) -> bool {
        self.kind == Kind::Disk
    }

    /// Writes a file that takes what room is left; on a limited file there is nothing to take.
    pub fn fill(&self) {
        self.fill_but(0);
    }

    /// Writes a file that takes what room is left but for so many bytes.
    pub fn fill_but(&self, bytes: u64) {
        if self.kind == Kind::Disk {
            let mut filler = File::create(self.directory.path().join("filler")).expect("a file");
            let page = [1; 4_096];
            // The error that ends this says that the disk is full.
            while filler.write_all(&page).is_ok() {}
            let size = filler.metadata().expect("its size").len();
            filler.set_len(size.saturating_sub(bytes)).expect("a shorter file");
        }
    }

    /// Makes room, under a process that runs.
    pub fn make(&self, pid: u32) {
        let mut command = match self.kind {
            Kind::Disk => {
                let mut command = Command::new("mount");
                command.args(["-o", &format!("remount,size={LARGE_DISK}")]).arg(self.directory.path());
                command
            }
            Kind::File => {
                let mut command = Command::new("prlimit");
                command.args(["--fsize=unlimited:", &format!("--pid={pid}")]);
                command
            }
        };
        assert!(command.status().expect("it runs").success(), "{command:?}");
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.kind == Kind::Disk {
            // Lazily: in a test that fails, the relay may still have files open.
            let unmounted = Command::new("umount").arg("-l").arg(self.directory.path()).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("{} could not be unmounted", self.directory.path().display());
            }
        }
    }
}

fn directory() -> TempDir {
    TempDir::with_prefix("posthaste-disk-").expect("a temporary directory")
}
