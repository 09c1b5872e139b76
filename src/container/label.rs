//! Labels of the host's mandatory access control for the command: an AppArmor profile, an SELinux context.
//!
//! They are written to the process's attributes (proc_pid_attr(5)), and count from execve on. Whether the transition is
//! allowed is up to the host's policy. A label for what the host does not have is an error: nobody asks for one in vain.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use crate::config::{Privileges, SelinuxLabel};
use crate::error::{Context, Error, Result};

/// Where AppArmor says whether it is enabled.
const APPARMOR: &str = "sys/module/apparmor/parameters/enabled";
/// Exists where SELinux is enabled.
const SELINUX: &str = "sys/fs/selinux/enforce";
const OWN_CONTEXT: &str = "proc/self/attr/current";

/// A label that the next program of this process gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// As messages call it.
    name: String,
    /// Where it is written; the second if the first does not exist.
    files: [&'static str; 2],
    text: String,
}

/// The labels that `privileges` ask for, for the host whose files are below `root`.
pub(super) fn settle(privileges: &Privileges, root: &Path) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    if let Some(profile) = &privileges.apparmor {
        labels.push(apparmor(profile, root)?);
    }
    if privileges.selinux != SelinuxLabel::default() {
        labels.push(selinux(&privileges.selinux, root)?);
    }
    Ok(labels)
}

fn apparmor(profile: &str, root: &Path) -> Result<Label> {
    let name = format!("AppArmor profile {profile}");
    let enabled = fs::read_to_string(root.join(APPARMOR)).is_ok_and(|text| text.starts_with('Y'));
    if !enabled {
        return Err(Error::new("cannot use", name, "AppArmor is not enabled on this host")
            .hint(format!("go without --security-opt apparmor={profile}")));
    }
    // The older file belongs to whichever module came first.
    let files = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"];
    Ok(Label { name, files, text: format!("exec {profile}") })
}

fn selinux(wanted: &SelinuxLabel, root: &Path) -> Result<Label> {
    const OPERATION: &str = "cannot use";
    if !root.join(SELINUX).exists() {
        return Err(Error::new(OPERATION, "SELinux label", "SELinux is not enabled on this host")
            .hint("go without --security-opt label=..."));
    }
    let own = fs::read_to_string(root.join(OWN_CONTEXT)).context("cannot read", OWN_CONTEXT)?;
    let text = context(own.trim_end_matches(['\0', '\n']), wanted).ok_or_else(|| {
        Error::new(OPERATION, "SELinux label", format!("rnet's own is '{}'", own.trim_end()))
    })?;
    let files = ["/proc/self/attr/exec"; 2];
    Ok(Label { name: format!("SELinux label {text}"), files, text })
}

/// `own` (`USER:ROLE:TYPE`, and `:LEVEL` on most systems) with the parts that are wanted otherwise.
fn context(own: &str, wanted: &SelinuxLabel) -> Option<String> {
    let mut parts = own.splitn(4, ':');
    let mut part = |wanted: &Option<String>| {
        let own = parts.next();
        wanted.as_deref().or(own).filter(|part| !part.is_empty()).map(str::to_owned)
    };
    let first = [part(&wanted.user)?, part(&wanted.role)?, part(&wanted.kind)?].join(":");
    Some(part(&wanted.level).map_or(first.clone(), |level| format!("{first}:{level}")))
}

impl Label {
    /// Gives the label to what this process executes next.
    pub(super) fn apply(&self) -> Result<()> {
        let [first, second] = self.files;
        let written = match fs::write(first, &self.text) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !Path::new(first).exists() => {
                fs::write(second, &self.text)
            }
            done => done,
        };
        written.map_err(|cause| self.refused(cause))
    }

    fn refused(&self, cause: io::Error) -> Error {
        let errno = cause.raw_os_error().map(Errno::from_raw);
        let error = Error::new("cannot use", &self.name, cause);
        match errno {
            Some(Errno::ENOENT | Errno::EINVAL) => {
                error.hint("the host's policy does not know it; is it loaded?")
            }
            Some(Errno::EACCES | Errno::EPERM) => {
                error.hint("the host's policy does not let you change to it")
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host's files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("one above")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn settled(
        privileges: &Privileges,
        host: &tempfile::TempDir,
    ) -> std::result::Result<Vec<String>, String> {
        let labels = settle(privileges, host.path()).map_err(|error| error.to_string())?;
        Ok(labels.into_iter().map(|label| label.text).collect())
    }

    #[test]
    fn profiles_of_apparmor_need_apparmor() {
        let privileges = Privileges { apparmor: Some("docker-default".into()), ..Privileges::default() };
        assert_eq!(settled(&privileges, &host(&[(APPARMOR, "Y\n")])), Ok(vec!["exec docker-default".into()]));
        for host in [host(&[]), host(&[(APPARMOR, "N\n")])] {
            let error = settled(&privileges, &host).expect_err("no AppArmor");
            assert!(error.contains("AppArmor is not enabled") && error.contains("hint"), "{error}");
        }
        assert_eq!(settled(&Privileges::default(), &host(&[])), Ok(vec![]));
    }

    #[test]
    fn labels_of_selinux_change_parts_of_our_own() {
        let kind = SelinuxLabel { kind: Some("container_t".into()), ..SelinuxLabel::default() };
        let privileges = Privileges { selinux: kind.clone(), ..Privileges::default() };
        let own = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0";
        let found = settled(&privileges, &host(&[(SELINUX, "1"), (OWN_CONTEXT, own)]));
        assert_eq!(found, Ok(vec!["unconfined_u:unconfined_r:container_t:s0-s0:c0.c1023".into()]));
        assert!(
            settled(&privileges, &host(&[(OWN_CONTEXT, own)])).expect_err("none").contains("SELinux is not")
        );
        let level = SelinuxLabel { level: Some("s0:c1,c2".into()), ..kind };
        assert_eq!(context("u:r:t:s0", &level).as_deref(), Some("u:r:container_t:s0:c1,c2"));
        assert_eq!(context("u:r:t", &SelinuxLabel::default()).as_deref(), Some("u:r:t"));
        assert_eq!(context("unconfined", &level), None);
    }

    #[test]
    fn what_policy_does_not_know_is_explained() {
        let label =
            Label { name: "AppArmor profile x".into(), files: ["/proc/none", "/dev/full"], text: "x".into() };
        let error = label.apply().expect_err("a full device").to_string();
        assert!(error.contains("AppArmor profile x"), "{error}");
        let unknown = label.refused(Errno::ENOENT.into()).to_string();
        assert!(unknown.contains("is it loaded?"), "{unknown}");
    }
}
