//! The key that seals all others: given by the operator, or made beside a SQLite file at the first run.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::{DecodeSliceError, Engine as _};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::{Digest as _, Sha256};

use super::Vault;
use crate::domain::clock::Clock;
use crate::domain::key::prefixed_hex;

const KEY_BYTES: usize = 32;
/// A key in base64 and a line's end fit twice.
const FILE_MAX_BYTES: u64 = 128;
/// Read and written by its owner.
const FILE_MODE: u32 = 0o600;
/// Permissions of anybody else.
const FOREIGN_MODE: u32 = 0o077;

/// Which key it is, without saying the key: the first four bytes of its SHA-256, as hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 4]);

impl Fingerprint {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let number = u32::from_str_radix(text, 16).ok()?;
        (text.len() == 8 && text.bytes().all(is_ours)).then(|| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&prefixed_hex("", &self.0))
    }
}

/// Why there is no master key: one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MasterKeyError(String);

/// 32 bytes that nobody may see.
pub struct MasterKey {
    key: SecretBox<[u8; KEY_BYTES]>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "MasterKey({})", self.fingerprint)
    }
}

/// Where keys come from.
#[derive(Debug, Clone, Copy)]
pub struct KeySources<'a> {
    /// `POSTHASTE_MASTER_KEY`.
    pub current: Option<&'a SecretString>,
    /// `POSTHASTE_MASTER_KEY_PREVIOUS`: keys that may still have sealed something.
    pub previous: &'a [SecretString],
    /// The SQLite file, where the ledger is one: its key may stand beside it (see [`key_file`]).
    pub database: Option<&'a Path>,
}

/// Where the key of a SQLite file stands: `<database>.key`, whatever link the file is reached by.
pub fn key_file(database: &Path) -> PathBuf {
    let mut name = database.canonicalize().unwrap_or_else(|_| database.to_owned()).into_os_string();
    name.push(".key");
    name.into()
}

impl Vault {
    /// A vault with the keys that there are.
    ///
    /// Without a configured key, a SQLite file has its own beside it, which is made where it is missing; Postgres has
    /// none, and the vault says so when there is something to seal. Where a key is configured, one that stands beside
    /// the file counts as a previous one, so that setting the variable later locks nothing away. Reads and writes
    /// files: call it at start, when the ledger is open, for then the database file exists and is this process's own.
    ///
    /// # Errors
    /// A key that is not 32 bytes in base64; a key file that others can read, that holds no key, or that can't be
    /// read or made.
    pub fn load(sources: &KeySources<'_>, clock: &dyn Clock) -> Result<Self, MasterKeyError> {
        let mut previous = Vec::new();
        for (index, text) in sources.previous.iter().enumerate() {
            let key = MasterKey::parse(text.expose_secret());
            previous.push(key.map_err(|error| error.of(&format!("master_key_previous[{index}]")))?);
        }
        let file = sources.database.map(key_file);
        let current = match (sources.current, file) {
            (Some(text), file) => {
                let beside = file.map(|file| MasterKey::read(&file)).transpose()?;
                previous.extend(beside.flatten());
                Some(MasterKey::parse(text.expose_secret()).map_err(|error| error.of("master_key"))?)
            }
            (None, Some(file)) => Some(MasterKey::read_or_make(&file, clock)?),
            (None, None) => None,
        };
        Ok(Self::new(current, previous))
    }
}

impl MasterKeyError {
    fn of(&self, setting: &str) -> Self {
        Self(format!("{setting} {}", self.0))
    }

    fn of_file(path: &Path, why: impl fmt::Display) -> Self {
        Self(format!("the key file {} {why}", path.display()))
    }
}

impl MasterKey {
    /// Reads a key from base64.
    ///
    /// # Errors
    /// It is not base64, or not of 32 bytes. The message goes on after the name of the setting, and shows nothing.
    pub fn parse(text: &str) -> Result<Self, MasterKeyError> {
        // Room for a key of twice the length: its own length can be told.
        let mut bytes = Zeroizing::new([0; 2 * KEY_BYTES]);
        let length = match BASE64.decode_slice(text.trim(), bytes.as_mut_slice()) {
            Ok(length) => length.to_string(),
            Err(DecodeSliceError::OutputSliceTooSmall) => format!("more than {}", bytes.len()),
            Err(DecodeSliceError::DecodeError(_)) => {
                return Err(MasterKeyError("is not base64 with its padding".into()));
            }
        };
        if length != KEY_BYTES.to_string() {
            return Err(MasterKeyError(format!("must be {KEY_BYTES} bytes in base64, this is {length}")));
        }
        Ok(Self::of(&bytes[..KEY_BYTES]))
    }

    /// A new key.
    pub fn generate(clock: &dyn Clock) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        bytes[..16].copy_from_slice(&clock.random().to_be_bytes());
        bytes[16..].copy_from_slice(&clock.random().to_be_bytes());
        Self::of(bytes.as_slice())
    }

    /// Which key it is.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        self.key.expose_secret()
    }

    fn of(bytes: &[u8]) -> Self {
        let key = SecretBox::init_with_mut(|key: &mut [u8; KEY_BYTES]| key.copy_from_slice(bytes));
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(bytes));
        Self { key, fingerprint: Fingerprint([a, b, c, d]) }
    }

    /// The key in the file at `path`; `None` where there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, MasterKeyError> {
        let wrong = |why: &dyn fmt::Display| MasterKeyError::of_file(path, why);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&format!("can't be read: {error}"))),
        };
        // Of the open file: nobody can put another one in its place between the question and the reading.
        let about = file.metadata().map_err(|error| wrong(&format!("can't be read: {error}")))?;
        let mode = about.permissions().mode() & 0o7777;
        if !about.is_file() {
            return Err(wrong(&"is not a file"));
        }
        if mode & FOREIGN_MODE != 0 {
            return Err(wrong(&format!("can be used by others (mode {mode:04o}): chmod 600 it")));
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_MAX_BYTES as usize));
        file.take(FILE_MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| wrong(&format!("can't be read: {error}")))?;
        let key = Self::parse(&text).map_err(|MasterKeyError(why)| {
            wrong(&format!("{why}: restore it from a backup; delete it only if nothing was sealed with it"))
        })?;
        Ok(Some(key))
    }

    /// The key in the file at `path`, which is made where it is missing.
    fn read_or_make(path: &Path, clock: &dyn Clock) -> Result<Self, MasterKeyError> {
        if let Some(key) = Self::read(path)? {
            return Ok(key);
        }
        let key = Self::generate(clock);
        match key.write(path, clock) {
            Ok(()) => Ok(key),
            // Another process was faster; its key counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::read(path)?.ok_or_else(|| MasterKeyError::of_file(path, "is gone again"))
            }
            Err(error) => Err(MasterKeyError::of_file(
                path,
                format_args!("can't be made: {error}; set POSTHASTE_MASTER_KEY to do without it"),
            )),
        }
    }

    /// Writes the key to a new file at `path`, durably: a kill leaves the whole file there or none.
    fn write(&self, path: &Path, clock: &dyn Clock) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{:016x}", clock.random() >> 64));
        let draft = PathBuf::from(name);
        let text = Zeroizing::new(BASE64.encode(self.expose()) + "\n");
        let written = write_draft(&draft, text.as_bytes())
            // Unlike a rename, it replaces nothing.
            .and_then(|()| fs::hard_link(&draft, path));
        let removed = fs::remove_file(&draft);
        written.and(removed)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

fn write_draft(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}
