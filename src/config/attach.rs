//! What it takes to give a network to a namespace that exists already.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{LinkSpec, Log, Network};

/// Longest name of a running network, in bytes: it becomes part of a socket's path, of which there are 107.
pub const MAX_NAME_BYTES: usize = 63;

/// Digits of the ids that engines draw, and how many of them they show.
const DRAWN_ID_DIGITS: usize = 64;
const SHOWN_ID_DIGITS: usize = 12;

/// Whether a running network may be called `name`: what may be a directory's name without surprise.
pub fn is_network_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    name.len() <= MAX_NAME_BYTES && starts && name.bytes().all(inner)
}

/// What the network of the container `id` is called: as the container, with ids as engines draw them shortened to what
/// they show of them. The error says what an id must be like.
pub fn container_name(id: &str) -> Result<String, String> {
    let is_digit = |character: char| character.is_ascii_hexdigit();
    let mut name = String::new();
    let mut rest = id;
    while !rest.is_empty() {
        let digits = rest.find(|character| !is_digit(character)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(digits);
        name += if run.len() == DRAWN_ID_DIGITS { &run[..SHOWN_ID_DIGITS] } else { run };
        let others = behind.find(is_digit).unwrap_or(behind.len());
        let (run, behind) = behind.split_at(others);
        name += run;
        rest = behind;
    }
    if is_network_name(&name) {
        return Ok(name);
    }
    Err(format!(
        "expected 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', with a letter or digit first"
    ))
}

/// What of `id` may be a part of a network's name of at most `bytes`: any other character becomes `_`, and what is too
/// long is cut. Several may have the same.
pub fn name_like(id: &str, bytes: usize) -> String {
    let fits = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let begins = id.trim_start_matches(|character: char| !character.is_ascii_alphanumeric());
    let mut name: String =
        begins.chars().map(|character| if fits(character) { character } else { '_' }).collect();
    name.truncate(bytes);
    if name.is_empty() { "x".to_owned() } else { name }
}

/// All that `rnet attach` needs, and the front-ends that imitate others.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The network.
    pub network: Network,
    /// Whose network it becomes.
    pub target: Target,
    /// The link; not used for [`Target::Tap`] and [`Target::Bess`].
    pub link: LinkSpec,
    /// When it starts to count, and when it ends.
    pub lifecycle: Lifecycle,
    /// What others call it; `None` is the target's or rnet's own process id.
    pub name: Option<String>,
    /// By what the caller that made it finds it again, and no other; `None` is a network that nobody comes back for.
    pub memo: Option<String>,
    /// Logging.
    pub log: Log,
}

/// Whose network it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The network namespace of a process.
    Process {
        /// Its id.
        pid: i32,
        /// The user namespace to enter first; `None` is the one that owns the network namespace.
        userns: Option<PathBuf>,
    },
    /// A network namespace by path.
    Path {
        /// A bind mount of it, `/proc/PID/ns/net` or `/proc/self/fd/N`.
        netns: PathBuf,
        /// As above.
        userns: Option<PathBuf>,
    },
    /// The namespaces of the process that bubblewrap names on this descriptor (`bwrap --info-fd`).
    Bubblewrap {
        /// The reading end of a pipe.
        info_fd: RawFd,
    },
    /// Whatever is behind a TAP that somebody has opened; nothing of its interface is changed.
    Tap {
        /// Its descriptor.
        fd: RawFd,
    },
    /// The first who connects to a unix socket of sequenced packets, each of which is a frame.
    Bess {
        /// Where it is made; a socket that was there is removed, anything else is an error.
        path: PathBuf,
    },
}

/// When a network counts as ready, and when it ends. SIGTERM and SIGINT always end it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Gets the one byte `1` when the namespace is configured and ports are listened on, and is closed.
    pub ready_fd: Option<RawFd>,
    /// Its hang-up ends the network; what is written to it does not.
    pub exit_fd: Option<RawFd>,
    /// Gets the process id, in decimal and with a newline, when ready.
    pub pid_file: Option<PathBuf>,
    /// Goes on in the background once ready, without standard streams.
    pub detach: bool,
    /// Goes on when the target's process has ended, or its path is gone.
    pub outlives_target: bool,
}

/// When an OCI runtime calls its hooks, as far as rnet has something to do then (runtime specification 1.2,
/// "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookStage {
    /// The namespaces stand; called outside of them. (`prestart` is an older name.)
    CreateRuntime,
    /// Called inside the namespaces, before the root is changed.
    CreateContainer,
    /// The container is gone.
    Poststop,
}

/// A call of `rnet oci-hook`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookCall {
    /// When; `None` is as the container's state shows.
    pub stage: Option<HookStage>,
    /// What names of annotations begin with; an option of `rnet attach` follows.
    pub prefix: String,
}

/// What is configured of the guest's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Setup {
    /// Nothing; it is made, and stays as the kernel makes it.
    Nothing,
    /// MTU, and the guest's addresses and default routes by the network's plans. It is brought up.
    #[default]
    Plan,
    /// The same with these addresses and routes instead. What cannot be set is a note.
    Given {
        /// Addresses with the length of their subnet's prefix.
        addresses: Vec<IpNet>,
        /// Routes, in an order in which each next hop is reachable by those before.
        routes: Vec<GuestRoute>,
    },
}

/// A route of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; `None` is the link itself.
    pub via: Option<IpAddr>,
    /// Its metric, if it shall have one.
    pub metric: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_ids_are_shortened_as_engines_show_them() {
        let drawn = "0123456789abcdef".repeat(4);
        for (id, name) in [
            (drawn.as_str(), Some("0123456789ab")),
            (&format!("default-{drawn}"), Some("default-0123456789ab")),
            (&format!("{drawn}0"), None),
            ("box_1.a-b", Some("box_1.a-b")),
            ("", None),
            ("-box", None),
            ("a/b", None),
            ("a b", None),
            ("\u{e4}", None),
            (&"x".repeat(MAX_NAME_BYTES), Some(&"x".repeat(MAX_NAME_BYTES))),
            (&"x".repeat(MAX_NAME_BYTES + 1), None),
        ] {
            assert_eq!(container_name(id).ok().as_deref(), name, "{id}");
        }
    }
}
