//! Landlock (landlock(7)): which files a thread, and those that it starts, can still open.
//!
//! What is open already stays open. Attributes (stat(2)) are not covered by any version; what an older kernel cannot forbid
//! stays allowed.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

use libc::{c_int, c_long, c_uint, c_ulong};
use nix::errno::Errno;

/// LANDLOCK_ACCESS_FS_* (include/uapi/linux/landlock.h).
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
/// How many accesses each version knows, from the first on; a later one knows those of the last.
const KNOWN: [u32; 5] = [13, 14, 15, 15, 16];
/// LANDLOCK_CREATE_RULESET_VERSION.
const ASK_VERSION: c_uint = 1;
/// LANDLOCK_RULE_PATH_BENEATH.
const PATH_BENEATH: c_int = 1;

/// `struct landlock_ruleset_attr` of the first version.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// From now on this thread, which needs PR_SET_NO_NEW_PRIVS, opens no files but those that are `readable`, or below such a
/// directory, and for reading and writing the files that are `writable`. Paths that do not exist are left out. ENOSYS or
/// EOPNOTSUPP: the kernel has no Landlock, or it is switched off.
pub(crate) fn keep_files(readable: &[&Path], writable: &[&Path]) -> nix::Result<()> {
    let handled = handled()?;
    let ruleset = create(&Ruleset { handled_access_fs: handled })?;
    for path in readable {
        allow(&ruleset, path, handled & (READ_FILE | READ_DIR))?;
    }
    for path in writable {
        allow(&ruleset, path, handled & (READ_FILE | WRITE_FILE | TRUNCATE))?;
    }
    // SAFETY: takes no pointers.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(done).map(drop)
}

/// All that the kernel can forbid.
fn handled() -> nix::Result<u64> {
    // SAFETY: no attributes are passed, as the question about the version demands.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<Ruleset>(), 0_usize, ASK_VERSION)
    };
    let version = Errno::result(version)?.max(1) as usize;
    Ok((1 << KNOWN[version.min(KNOWN.len()) - 1]) - 1)
}

fn create(ruleset: &Ruleset) -> nix::Result<OwnedFd> {
    let len = size_of::<Ruleset>();
    // SAFETY: the attributes are as long as is said and outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::from_ref(ruleset), len, 0 as c_ulong)
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

fn allow(ruleset: &OwnedFd, path: &Path, access: u64) -> nix::Result<()> {
    // std opens close-on-exec.
    let Ok(file) = File::options().read(true).custom_flags(libc::O_PATH).open(path) else {
        return Ok(());
    };
    let directory = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    let allowed_access = if directory { access } else { access & !READ_DIR };
    let rule = PathBeneath { allowed_access, parent_fd: file.as_fd().as_raw_fd() };
    let (ruleset, kind) = (c_long::from(ruleset.as_raw_fd()), c_long::from(PATH_BENEATH));
    // SAFETY: the rule has the layout that its kind demands, and both descriptors are open during the call.
    let done =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset, kind, ptr::from_ref(&rule), 0_usize) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::prctl::set_no_new_privs;
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;
    use std::thread;

    #[test]
    fn what_is_not_kept_cannot_be_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        let [kept, log, other] = ["kept", "log", "other"].map(|name| directory.path().join(name));
        fs::create_dir(&kept).expect("a directory");
        for file in [&kept.join("file"), &log, &other] {
            fs::write(file, "text").expect("a file");
        }
        // Of this thread alone, lest the other tests have no files.
        let seen = thread::spawn(move || {
            set_no_new_privs().expect("always possible");
            match keep_files(&[&kept], &[&log, Path::new("/nonexistent")]) {
                Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => return None,
                done => done.expect("a ruleset"),
            }
            let refused =
                |done: std::io::Result<()>| done.is_err_and(|error| error.kind() == PermissionDenied);
            Some([
                !refused(fs::read(kept.join("file")).map(drop)),
                refused(fs::write(kept.join("file"), "")),
                refused(fs::write(kept.join("new"), "")),
                !refused(fs::write(&log, "longer")),
                refused(fs::read(&other).map(drop)),
                refused(fs::read_dir("/").map(drop)),
                refused(fs::remove_file(kept.join("file"))),
            ])
        });
        match seen.join().expect("it lives") {
            Some(seen) => assert_eq!(seen, [true; 7]),
            None => eprintln!("skipped: the kernel has no Landlock"),
        }
    }
}
