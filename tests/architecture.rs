//! Keeps the direction of dependencies: which part of the tree may speak of what.

use std::fs;
use std::path::{Path, PathBuf};

/// What lets a module read a clock, open something or share a thread.
const SYSTEM: &[&str] = &[
    "nix::",
    "libc::",
    "mio::",
    "socket2::",
    "tun_tap",
    "sendfd",
    "netlink_",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
];

/// The core is a state machine: no system and none of the parts that touch it.
#[test]
fn net_touches_no_system() {
    forbid("src/net", SYSTEM);
    forbid("src/net", &["crate::io", "crate::sys", "crate::container", "crate::cli"]);
}

/// Arguments become a configuration without a look at the machine.
#[test]
fn cli_touches_no_system() {
    forbid("src/cli", SYSTEM);
    forbid("src/cli", &["crate::net", "crate::io", "crate::sys", "crate::container"]);
}

/// The shell moves bytes; what is in them is the core's business.
#[test]
fn io_builds_and_reads_no_packet() {
    forbid("src/io", &["etherparse", "smoltcp::wire", "dhcproto", "net::packet", "crate::cli"]);
}

/// The launcher knows nothing of the stack.
#[test]
fn container_knows_no_network_stack() {
    forbid("src/container", &["crate::net", "crate::io", "crate::cli", "smoltcp", "mio::", "thread::spawn"]);
}

/// The lowest layer depends on plain data only.
#[test]
fn sys_depends_on_no_layer_above() {
    forbid("src/sys", &["crate::io", "crate::container", "crate::cli", "crate::net::gateway"]);
}

/// Plain data depends on nothing.
#[test]
fn config_and_error_are_leaves() {
    for leaf in ["src/config.rs", "src/error.rs"] {
        forbid(leaf, &["crate::net", "crate::io", "crate::sys", "crate::container", "crate::cli"]);
    }
}

/// `unsafe` lives in one place.
#[test]
fn unsafe_is_under_sys_alone() {
    for file in sources("src").into_iter().filter(|file| !file.starts_with("src/sys")) {
        for (number, line) in code(&file) {
            let unsafe_word =
                line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            assert!(!unsafe_word && !line.contains("allow(unsafe"), "{}:{number}: {line}", file.display());
        }
    }
}

/// A file opens with what it owns.
#[test]
fn every_file_opens_with_its_purpose() {
    for file in ["src", "tests", "bench"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&file).expect("listed a moment ago");
        assert!(text.starts_with("//! "), "{} does not start with //!", file.display());
    }
}

/// Fails at the first line of code below `at` that contains one of `words`.
fn forbid(at: &str, words: &[&str]) {
    for file in sources(at) {
        for (number, line) in code(&file) {
            for word in words {
                assert!(!contains_word(&line, word), "{}:{number}: {word} in: {line}", file.display());
            }
        }
    }
}

/// Whether `line` contains `word`, and not as the end of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

/// Lines of code with their numbers: without comments, and without the unit tests at the end of the file.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("listed a moment ago");
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim().to_owned()));
    lines.take_while(|(_, line)| line != "#[cfg(test)]").filter(|(_, line)| !line.starts_with("//")).collect()
}

/// The Rust files at or below `at`, in order; none if it does not exist.
fn sources(at: &str) -> Vec<PathBuf> {
    let at = PathBuf::from(at);
    if at.is_file() {
        return vec![at];
    }
    let Ok(entries) = fs::read_dir(&at) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
        .into_iter()
        .flat_map(|path| match path.extension() {
            Some(extension) if extension == "rs" => vec![path],
            _ if path.is_dir() => sources(&path.to_string_lossy()),
            _ => Vec::new(),
        })
        .collect()
}
