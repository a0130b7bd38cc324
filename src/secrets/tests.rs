use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::app::SystemClock;

const ROW: Place<'static> = Place { purpose: Purpose::EndpointSecret, row: "ep_1" };

fn clock() -> SystemClock {
    SystemClock::new()
}

/// A key of 32 equal bytes, as an operator would give it.
fn text(byte: u8) -> SecretString {
    BASE64.encode([byte; 32]).into()
}

fn key(byte: u8) -> MasterKey {
    MasterKey::parse(text(byte).expose_secret()).expect("good")
}

fn vault(current: u8, previous: &[u8]) -> Vault {
    Vault::new(Some(key(current)), previous.iter().map(|byte| key(*byte)).collect())
}

fn sealed(vault: &Vault, secret: &str) -> String {
    vault.seal(&ROW, &secret.into(), &clock()).expect("sealed")
}

fn opened(vault: &Vault, sealed: &str) -> Result<String, VaultError> {
    vault.open(&ROW, sealed).map(|secret| secret.expose_secret().to_owned())
}

proptest! {
    #[test]
    fn what_is_sealed_opens(secret in any::<String>(), row in any::<String>(), byte in any::<u8>()) {
        let vault = vault(byte, &[]);
        let place = Place { purpose: Purpose::EndpointHeaders, row: &row };
        let sealed = vault.seal(&place, &secret.as_str().into(), &clock()).expect("sealed");
        let opened = vault.open(&place, &sealed).expect("opened");
        prop_assert_eq!(opened.expose_secret(), secret.as_str());
        prop_assert!(!vault.needs_reseal(&sealed));
    }

    #[test]
    fn one_other_bit_anywhere_does_not_open(bit in 0_usize..8 * (24 + 6 + 16)) {
        let vault = vault(1, &[]);
        let sealed = sealed(&vault, "canary");
        let (head, body) = sealed.rsplit_once(':').expect("three parts");
        let mut bytes = BASE64.decode(body).expect("base64");
        prop_assert_eq!(bytes.len(), 24 + 6 + 16);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let broken = opened(&vault, &format!("{head}:{}", BASE64.encode(bytes)));
        prop_assert_eq!(broken, Err(VaultError::Broken { fingerprint: key(1).fingerprint() }));
    }
}

#[test]
fn the_form_is_frozen() {
    // Computed independently, by the RFC's and the draft's steps written out in Python (which yield the draft's own
    // vector, A.3.1): key 32 times 0x07, nonce 0x00 to 0x17.
    let sealed = concat!(
        "v1:4bb06f8e:AAECAwQFBgcICQoLDA0ODxAREhMUFRYX33/Y4JlDGJdjkfIFt6vH3iy1e394pn48pTbVtOmfzeRzUe1bmtCiPTacXHnb",
        "Dluj4jAtu6d3",
    );
    assert_eq!(opened(&vault(7, &[]), sealed).as_deref(), Ok("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"));
}

#[test]
fn a_ciphertext_moved_to_another_row_does_not_open() {
    // holds: 46
    let vault = vault(1, &[]);
    let sealed = sealed(&vault, "canary");
    let elsewhere = [
        Place { row: "ep_2", ..ROW },
        Place { row: "", ..ROW },
        Place { purpose: Purpose::EndpointHeaders, ..ROW },
    ];
    for place in elsewhere {
        let error = vault.open(&place, &sealed).expect_err("elsewhere");
        assert_eq!(error, VaultError::Broken { fingerprint: key(1).fingerprint() });
    }
    assert_eq!(opened(&vault, &sealed).as_deref(), Ok("canary"));
}

#[test]
fn equal_secrets_do_not_look_equal() {
    let vault = vault(1, &[]);
    assert_ne!(sealed(&vault, "canary"), sealed(&vault, "canary"));
}

#[test]
fn the_master_key_is_changed_step_by_step() {
    let old = sealed(&vault(1, &[]), "canary");
    let both = vault(2, &[1]);
    assert!(both.needs_reseal(&old));
    assert_eq!(opened(&both, &old).as_deref(), Ok("canary"));
    let new = sealed(&both, "canary");
    assert!(!both.needs_reseal(&new));
    let after = vault(2, &[]);
    assert_eq!(opened(&after, &new).as_deref(), Ok("canary"));
    let fingerprint = key(1).fingerprint();
    assert_eq!(opened(&after, &old), Err(VaultError::UnknownKey { fingerprint }));
    // Without a current key nothing is sealed, so nothing can be sealed anew.
    let none = Vault::new(None, vec![key(1)]);
    assert!(!none.needs_reseal(&old) && opened(&none, &old).is_ok());
    assert_eq!(none.seal(&ROW, &"canary".into(), &clock()), Err(VaultError::NoKey));
}

#[rstest]
#[case::plain("canary")]
#[case::empty("")]
#[case::version("v2:0a0b0c0d:AAAA")]
#[case::fingerprint("v1:canary:AAAA")]
#[case::upper_case("v1:0A0B0C0D:AAAA")]
#[case::sign("v1:+a0b0c0d:AAAA")]
#[case::not_base64("v1:0a0b0c0d:canary!")]
#[case::short("v1:0a0b0c0d:AAAA")]
fn what_was_never_sealed_is_told_apart(#[case] text: &str) {
    let vault = vault(1, &[]);
    assert_eq!(opened(&vault, text), Err(VaultError::Malformed));
    assert!(vault.needs_reseal(text));
}

#[test]
fn a_secret_is_bounded() {
    let vault = vault(1, &[]);
    let long = "x".repeat(SECRET_MAX_BYTES);
    assert_eq!(opened(&vault, &sealed(&vault, &long)), Ok(long.clone()));
    assert_eq!(vault.seal(&ROW, &(long + "x").into(), &clock()), Err(VaultError::TooLong));
}

#[test]
fn neither_keys_nor_secrets_are_shown() {
    // holds: 46
    let material = "canarycanarycanarycanarycanary12";
    let text = BASE64.encode(material);
    let key = MasterKey::parse(&text).expect("32 bytes");
    let fingerprint = key.fingerprint().to_string();
    assert_eq!(format!("{key:?}"), format!("MasterKey({fingerprint})"));
    let vault = Vault::new(Some(key), Vec::new());
    let sealed = sealed(&vault, "canary");
    let moved = vault.open(&Place { row: "ep_2", ..ROW }, &sealed).expect_err("moved");
    let other = super::tests::vault(1, &[]).open(&ROW, &sealed).expect_err("another key");
    let bad = MasterKey::parse("canary").expect_err("no key");
    let debug = format!("{:?}", text.bytes());
    for shown in [
        sealed,
        format!("{vault:?} {:?}", vault.open(&ROW, "canary")),
        format!("{moved} {moved:?} {other} {other:?} {bad} {bad:?}"),
    ] {
        assert!(!shown.contains("canary") && !shown.contains(&text) && !shown.contains(&debug), "{shown}");
    }
    assert!(moved.to_string().contains(&fingerprint) && other.to_string().contains(&fingerprint));
}

#[rstest]
#[case::empty("", "must be 32 bytes in base64, this is 0")]
#[case::short("AAAA", "this is 3")]
#[case::long("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "this is 36")]
#[case::very_long(&"A".repeat(400), "more than 64")]
#[case::hex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "this is 48")]
#[case::not_base64("not a key", "base64")]
#[case::no_padding("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "base64")]
fn what_is_no_master_key(#[case] text: &str, #[case] expected: &str) {
    let error = MasterKey::parse(text).expect_err("refused").to_string();
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: TempDir::new().expect("directory") }
    }

    fn database(&self) -> PathBuf {
        self.dir.path().join("posthaste.db")
    }

    fn key_file(&self) -> PathBuf {
        key_file(&self.database())
    }

    fn put(&self, text: &str, mode: u32) {
        fs::write(self.key_file(), text).expect("written");
        fs::set_permissions(self.key_file(), fs::Permissions::from_mode(mode)).expect("mode set");
    }

    fn load(&self, current: Option<&SecretString>) -> Result<Vault, MasterKeyError> {
        let database = self.database();
        Vault::load(&KeySources { current, previous: &[], database: Some(&database) }, &clock())
    }
}

#[test]
fn a_sqlite_file_gets_a_key_at_first_and_keeps_it() {
    let files = Files::new();
    let first = files.load(None).expect("made");
    let mode = fs::metadata(files.key_file()).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let names: Vec<_> = fs::read_dir(files.dir.path())
        .expect("read")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["posthaste.db.key"], "nothing else is left behind");
    assert_eq!(files.load(None).expect("read").fingerprint(), first.fingerprint());
    assert_ne!(Files::new().load(None).expect("made").fingerprint(), first.fingerprint());
    // Setting the variable later locks nothing away.
    let sealed = sealed(&first, "canary");
    let configured = files.load(Some(&text(9))).expect("both");
    assert_eq!(configured.fingerprint(), Some(key(9).fingerprint()));
    assert_eq!(opened(&configured, &sealed).as_deref(), Ok("canary"));
    assert!(configured.needs_reseal(&sealed));
}

#[test]
fn a_database_has_one_key_by_whatever_link_it_is_reached() {
    let (files, other) = (Files::new(), Files::new());
    fs::write(files.database(), "").expect("written");
    std::os::unix::fs::symlink(files.database(), other.database()).expect("linked");
    let linked = other.load(None).expect("made");
    assert_eq!(files.load(None).expect("read").fingerprint(), linked.fingerprint());
    assert!(files.dir.path().join("posthaste.db.key").exists());
}

#[test]
fn a_configured_key_makes_no_file() {
    let files = Files::new();
    let vault = files.load(Some(&text(9))).expect("good");
    assert_eq!(vault.fingerprint(), Some(key(9).fingerprint()));
    assert!(!files.key_file().exists());
}

#[rstest]
#[case::group(0o640, "mode 0640")]
#[case::others(0o604, "mode 0604")]
#[case::writable(0o620, "mode 0620")]
fn a_key_file_that_others_can_use_is_refused(#[case] mode: u32, #[case] expected: &str) {
    let files = Files::new();
    files.put(text(1).expose_secret(), mode);
    let error = files.load(None).expect_err("refused").to_string();
    assert!(error.contains(expected) && error.contains("posthaste.db.key"), "{error}");
    assert!(error.contains("chmod 600") && !error.contains(text(1).expose_secret()), "{error}");
    assert!(files.load(Some(&text(2))).is_err());
}

#[rstest]
#[case::empty("")]
#[case::short("AAAA\n")]
#[case::cut("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB")]
#[case::words("canary canary")]
#[case::long(&"canary".repeat(100))]
fn a_key_file_without_a_key_is_refused_and_stays(#[case] text: &str) {
    let files = Files::new();
    files.put(text, 0o600);
    let error = files.load(None).expect_err("refused").to_string();
    assert!(error.contains("restore it") && !error.contains("canary") && !error.contains('\n'), "{error}");
    assert_eq!(fs::read_to_string(files.key_file()).expect("there"), text);
}

#[test]
fn a_key_file_that_can_not_be_made_is_one_clear_line() {
    let database = Path::new("/nowhere/at/all/posthaste.db");
    let sources = KeySources { current: None, previous: &[], database: Some(database) };
    let error = Vault::load(&sources, &clock()).expect_err("refused").to_string();
    assert!(error.contains("/nowhere/at/all/posthaste.db.key can't be made"), "{error}");
    let directory = Files::new();
    fs::create_dir(directory.key_file()).expect("made");
    fs::set_permissions(directory.key_file(), fs::Permissions::from_mode(0o700)).expect("mode set");
    assert!(directory.load(None).expect_err("refused").to_string().contains("is not a file"));
}

#[test]
fn processes_that_start_together_agree_on_one_key() {
    let files = Files::new();
    let loaded: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| files.load(None).expect("made or read"))).collect();
        threads.into_iter().map(|thread| thread.join().expect("ended").fingerprint()).collect()
    });
    assert!(loaded.iter().all(|fingerprint| *fingerprint == loaded[0]), "{loaded:?}");
}

#[test]
fn postgres_asks_for_the_variable_once_there_is_something_to_seal() {
    let previous = [text(1)];
    let sources = KeySources { current: None, previous: &previous, database: None };
    let vault = Vault::load(&sources, &clock()).expect("starts without");
    let error = vault.seal(&ROW, &"canary".into(), &clock()).expect_err("no key").to_string();
    assert!(error.contains("POSTHASTE_MASTER_KEY") && !error.contains("canary"), "{error}");
    let bad = ["AAAA".into()];
    let error =
        Vault::load(&KeySources { previous: &bad, ..sources }, &clock()).expect_err("short").to_string();
    assert_eq!(error, "master_key_previous[0] must be 32 bytes in base64, this is 3");
}
