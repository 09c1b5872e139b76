//! Keeps the direction of dependencies: which part of the tree may speak of what.

use std::fs;
use std::path::{Path, PathBuf};

/// A part of the tree, and what its code may name.
struct Part {
    at: &'static str,
    /// Other parts of this crate.
    parts: &'static [&'static str],
    /// Crates from outside.
    crates: &'static [&'static str],
}

/// Dependencies point one way. What is not listed here (`main`, `run`, `exec`, `cp`, `hello`, `attach`, `oci_hook`, `cni`) composes,
/// and may name everything.
const PARTS: &[Part] = &[
    Part { at: "src/config.rs", parts: &["config"], crates: &["ipnet"] },
    Part { at: "src/config", parts: &["config"], crates: &["ipnet"] },
    Part { at: "src/error.rs", parts: &[], crates: &["nix"] },
    Part { at: "src/etc.rs", parts: &["config"], crates: &[] },
    Part { at: "src/etc", parts: &["config"], crates: &[] },
    Part { at: "src/log.rs", parts: &["config"], crates: &["tracing", "tracing_subscriber"] },
    Part {
        at: "src/cli",
        parts: &["cli", "config", "error", "etc"],
        crates: &["clap", "clap_complete", "clap_mangen", "ipnet"],
    },
    Part {
        at: "src/net",
        parts: &["config", "net"],
        crates: &["dhcproto", "etherparse", "ipnet", "smoltcp", "tracing"],
    },
    Part {
        at: "src/sys",
        parts: &["config", "error", "net", "sys"],
        crates: &[
            "ipnet",
            "libc",
            "netlink_packet_core",
            "netlink_packet_route",
            "netlink_sys",
            "nix",
            "sendfd",
            "socket2",
            "syscalls",
            "tracing",
            "tun_tap",
        ],
    },
    Part {
        at: "src/io",
        parts: &["config", "error", "etc", "io", "net", "sys"],
        crates: &["libc", "mio", "nix", "socket2", "tracing"],
    },
    Part {
        at: "src/control",
        parts: &["config", "container", "control", "error", "io", "net", "sys"],
        crates: &["nix", "serde_json", "tracing"],
    },
    Part {
        at: "src/state",
        parts: &["config", "control", "error", "state", "sys"],
        crates: &["nix", "serde", "serde_json", "tracing"],
    },
    Part { at: "src/oci_hook/state.rs", parts: &["config", "oci_hook"], crates: &["serde", "serde_json"] },
    Part { at: "src/cni/request.rs", parts: &["cni", "config"], crates: &["serde", "serde_json"] },
    Part { at: "src/cni/answer.rs", parts: &["cni", "config", "error"], crates: &["serde_json"] },
    Part { at: "src/attach/slirp4netns/protocol.rs", parts: &["config"], crates: &["serde_json"] },
    Part { at: "src/disk.rs", parts: &[], crates: &["nix"] },
    Part { at: "src/image/tar.rs", parts: &[], crates: &[] },
    Part { at: "src/image/name.rs", parts: &[], crates: &[] },
    Part { at: "src/image/compression.rs", parts: &[], crates: &["flate2", "ruzstd"] },
    Part { at: "src/image/digest.rs", parts: &[], crates: &["sha2"] },
    Part { at: "src/image/layout.rs", parts: &["config", "image"], crates: &["serde", "serde_json"] },
    Part { at: "src/image/apply.rs", parts: &["config", "image"], crates: &["nix"] },
    Part {
        at: "src/image",
        parts: &["config", "disk", "error", "image", "sys"],
        crates: &["flate2", "nix", "ruzstd", "serde", "serde_json", "sha2", "tracing"],
    },
    Part { at: "src/container/profile.rs", parts: &["config", "sys"], crates: &["serde", "serde_json"] },
    Part {
        at: "src/container",
        parts: &["config", "container", "disk", "error", "etc", "sys"],
        crates: &["libc", "nix", "serde", "serde_json", "tracing"],
    },
];

/// What of the standard library a pure part may name: values and collections.
const PURE_STD: &[&str] = &[
    "array",
    "borrow",
    "cell",
    "cmp",
    "collections",
    "convert",
    "error",
    "ffi",
    "fmt",
    "hash",
    "io",
    "iter",
    "mem",
    "net",
    "num",
    "ops",
    "os",
    "path",
    "rc",
    "slice",
    "str",
    "sync",
    "time",
    "vec",
];

/// What in [`PURE_STD`] reads a clock, opens something, prints or asks the system all the same.
const SYSTEM: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "io::stdin",
    "io::stdout",
    "io::stderr",
    "print!(",
    "println!(",
    ".exists()",
    ".try_exists()",
    ".is_dir()",
    ".is_file()",
    ".is_symlink()",
    ".canonicalize()",
    ".metadata()",
    ".read_dir()",
    ".read_link()",
];

#[test]
fn dependencies_point_one_way() {
    let dependencies = dependencies();
    for part in PARTS {
        for path in paths(part.at) {
            let outside = dependencies.contains(&path.segments[0]);
            let allowed = match path.segments.as_slice() {
                [krate, name, ..] if krate == "crate" => part.parts.contains(&name.as_str()),
                [krate, ..] if outside => part.crates.contains(&krate.as_str()),
                _ => true,
            };
            assert!(allowed, "{} may not name {path}", part.at);
        }
    }
}

/// The core is a state machine, arguments become a configuration, and formats are text: none looks at the machine.
#[test]
fn net_cli_and_formats_touch_no_system() {
    for at in [
        "src/net",
        "src/cli",
        "src/etc.rs",
        "src/etc",
        "src/attach/slirp4netns/protocol.rs",
        "src/config.rs",
        "src/oci_hook/state.rs",
        "src/cni/request.rs",
        "src/cni/answer.rs",
        "src/image/tar.rs",
        "src/image/name.rs",
        "src/image/compression.rs",
        "src/image/digest.rs",
        "src/image/apply.rs",
        "src/container/profile.rs",
    ] {
        for path in paths(at) {
            let allowed = match path.segments.as_slice() {
                [std, name, ..] if std == "std" => PURE_STD.contains(&name.as_str()),
                _ => true,
            };
            assert!(allowed, "{at} is pure and may not name {path}");
        }
        forbid(at, SYSTEM);
    }
}

/// The shell moves bytes; what is in them is the core's business.
#[test]
fn io_builds_and_reads_no_packet() {
    for path in paths("src/io") {
        let packet = path.segments.iter().any(|segment| segment == "packet");
        assert!(!packet || path.segments.contains(&"sys".to_owned()), "src/io may not name {path}");
    }
}

/// A process that still has to fork has one thread.
#[test]
fn container_starts_no_thread() {
    forbid("src/container", &["thread::spawn", "thread::Builder", "thread::scope"]);
}

/// The rules see what they are meant to see.
#[test]
fn nested_and_inline_paths_are_found() {
    let code = "use crate::{config::Config, io::{self, link::Link}};\nlet x = nix::unistd::getpid();";
    let lines = code.lines().enumerate().map(|(at, line)| (at + 1, line.to_owned())).collect::<Vec<_>>();
    let found: Vec<String> = paths_in(&lines).into_iter().map(|(_, path)| path.join("::")).collect();
    assert_eq!(
        found,
        ["crate::config::Config", "crate::io::self", "crate::io::link::Link", "nix::unistd::getpid"]
    );
    let up = |file: &str| absolute(Path::new(file), segments("super::super::io::link")).join("::");
    assert_eq!(up("src/net/dns.rs"), "crate::io::link");
    assert_eq!(up("src/net/tcp/mod.rs"), "crate::io::link");
    assert_eq!(up("src/net/tcp/flow.rs"), "crate::net::io::link");
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
                assert!(!line.contains(word), "{}:{number}: {word} in: {line}", file.display());
            }
        }
    }
}

/// A path that code names, and where.
struct Named {
    segments: Vec<String>,
    file: PathBuf,
    line: usize,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}:{})", self.segments.join("::"), self.file.display(), self.line)
    }
}

/// Every path with at least two segments that the code below `at` names, with the braces of `use` expanded.
fn paths(at: &str) -> Vec<Named> {
    let files = sources(at);
    assert!(!files.is_empty(), "there is no {at}");
    let named = files.into_iter().flat_map(|file| {
        let found = paths_in(&code(&file)).into_iter();
        found.map(move |(line, path)| Named { segments: absolute(&file, path), file: file.clone(), line })
    });
    named.collect()
}

/// `path` with the `super` at its beginning resolved.
fn absolute(file: &Path, mut path: Vec<String>) -> Vec<String> {
    let within = file.with_extension("");
    let mut module: Vec<String> =
        within.iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect();
    module.pop_if(|name| name == "mod");
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    if ups == 0 {
        return path;
    }
    module.truncate(module.len().saturating_sub(ups));
    ["crate".to_owned()].into_iter().chain(module).chain(path.split_off(ups)).collect()
}

fn paths_in(lines: &[(usize, String)]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut lines = lines.iter();
    while let Some((number, line)) = lines.next() {
        match line.split_once("use ").filter(|(before, _)| before.is_empty() || before.starts_with("pub")) {
            Some((_, tree)) => {
                let mut tree = tree.to_owned();
                while !tree.contains(';') {
                    let Some((_, line)) = lines.next() else { break };
                    tree.push_str(line);
                }
                let tree: String = tree.chars().filter(|c| !c.is_whitespace() && *c != ';').collect();
                expand("", &tree, &mut |path| found.push((*number, segments(path))));
            }
            None => {
                let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
                let inline = line.split(|c| !is_name(c)).filter(|path| path.contains("::"));
                found.extend(inline.map(|path| (*number, segments(path))));
            }
        }
    }
    found.retain(|(_, path)| path.len() > 1);
    found
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
}

/// Calls `found` with each path that the `use` tree `tree` stands for behind `prefix`.
fn expand(prefix: &str, tree: &str, found: &mut impl FnMut(&str)) {
    let Some((head, rest)) = tree.split_once('{') else {
        return found(&format!("{prefix}{tree}"));
    };
    let prefix = format!("{prefix}{head}");
    let (mut depth, mut start) = (0, 0);
    for (at, character) in rest.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                expand(&prefix, &rest[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The crates of Cargo.toml's `[dependencies]`, as code names them.
fn dependencies() -> Vec<String> {
    let text = fs::read_to_string("Cargo.toml").expect("tests run where Cargo.toml is");
    let section = text.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let entries = section.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('='));
    let names: Vec<String> = entries.map(|(name, _)| name.trim().replace('-', "_")).collect();
    assert!(names.contains(&"nix".to_owned()), "{names:?}");
    names
}

/// Lines of code with their numbers: without comments, and without what is for unit tests only.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("listed a moment ago");
    let mut lines = text.lines().enumerate();
    let mut code = Vec::new();
    while let Some((at, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let mut skipped = lines.by_ref().map(|(_, line)| line);
            if skipped.next().is_some_and(|first| !first.ends_with(';')) {
                skipped.find(|line| *line == end);
            }
        } else if !line.trim_start().starts_with("//") {
            code.push((at + 1, line.trim().to_owned()));
        }
    }
    code
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
