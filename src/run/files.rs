//! Files of `/etc` that a container shares with those in whose network it is.
//!
//! Another container's are opened as it sees them (RESOLVE_IN_ROOT), whatever its links say; a file that cannot be had
//! counts as empty.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::config::{Config, EtcFiles};
use crate::etc;
use crate::io::resolver::RESOLV_CONF;

const HOSTS: &str = "/etc/hosts";
/// Most that is read of one, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The host's own.
pub(super) fn of_host(config: &Config) -> EtcFiles {
    let [resolv_conf, hosts] = [RESOLV_CONF, HOSTS].map(|path| read(File::open(path).ok(), path));
    etc::files_shared(config, resolv_conf, hosts)
}

/// Those that the process `pid` sees.
pub(super) fn of_process(config: &Config, pid: i32) -> EtcFiles {
    let root = format!("/proc/{pid}/root");
    let root = File::open(&root).inspect_err(|error| tracing::warn!(%error, "cannot look into {root}")).ok();
    let [resolv_conf, hosts] = [RESOLV_CONF, HOSTS].map(|path| {
        let file = root.as_ref().and_then(|root| open_inside(root, path.trim_start_matches('/')));
        read(file, path)
    });
    etc::files_shared(config, resolv_conf, hosts)
}

fn open_inside(root: &impl AsFd, path: &str) -> Option<File> {
    // What is there may be a pipe.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, Path::new(path), how).ok().map(File::from)
}

fn read(file: Option<File>, path: &str) -> String {
    let mut text = Vec::new();
    let is_regular = |file: &File| file.metadata().is_ok_and(|about: fs::Metadata| about.is_file());
    match file.filter(is_regular).map(|file| file.take(MAX_BYTES).read_to_end(&mut text)) {
        Some(Ok(_)) => String::from_utf8_lossy(&text).into_owned(),
        _ => {
            tracing::info!("no {path} to share");
            String::new()
        }
    }
}
