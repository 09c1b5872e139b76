//! Options of what the command may do: docker's, and podman's where docker has none.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{Capabilities, Limit, Mapping, Privileges, Resource, Seccomp, SelinuxLabel};

const CONFINEMENT: &str = "Confinement";

/// What the command is left with.
#[derive(Debug, Args)]
pub(super) struct ConfinementArgs {
    /// Leave the command a capability that docker's default lacks, such as NET_ADMIN; or ALL. Repeatable.
    #[arg(long, value_name = "CAP", value_parser = capability, help_heading = CONFINEMENT)]
    cap_add: Vec<Capabilities>,

    /// Take one of docker's default capabilities away; or ALL. Repeatable.
    #[arg(long, value_name = "CAP", value_parser = capability, help_heading = CONFINEMENT)]
    cap_drop: Vec<Capabilities>,

    /// Leave the command all that its user namespace gives: every capability and system call, all of /proc and /sys.
    #[arg(long, help_heading = CONFINEMENT)]
    privileged: bool,

    /// Leave the command those system calls that a profile in JSON allows, in the form of docker or of OCI bundles.
    #[arg(long, value_name = "FILE", help_heading = CONFINEMENT)]
    seccomp: Option<PathBuf>,

    /// no-new-privileges[=true|false] [default: true with one user], unmask=ALL for all of /proc and /sys, or
    /// seccomp=unconfined for all system calls, =FILE for those of a profile, apparmor=PROFILE, label=type:TYPE
    /// and other parts of an SELinux label. Repeatable.
    #[arg(long, value_name = "OPT", value_parser = security_opt, help_heading = CONFINEMENT)]
    security_opt: Vec<SecurityOpt>,

    /// Limit a resource of each process, such as nofile=1024:4096, in units of setrlimit(2); -1 is no limit.
    /// Repeatable.
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit, help_heading = CONFINEMENT)]
    ulimit: Vec<Limit>,
}

/// `--security-opt`.
#[derive(Clone, Debug)]
enum SecurityOpt {
    NoNewPrivileges(bool),
    Unmask,
    Seccomp(Seccomp),
    /// `None` for what rnet itself has.
    AppArmor(Option<String>),
    /// What sets a part of the label.
    Selinux(fn(&mut SelinuxLabel) -> &mut Option<String>, String),
    SelinuxOff,
}

/// The defaults, and what the options change; of two limits of one resource the later.
///
/// Where there are several users, set-user-id programs such as `su` have something to give, and may, as in docker.
pub(super) fn privileges(args: ConfinementArgs, mapping: &Mapping, cwd: &Path) -> Privileges {
    let mut privileges = if args.privileged { Privileges::unconfined() } else { Privileges::default() };
    privileges.no_new_privileges &= *mapping == Mapping::Single;
    let all_of = |sets: &[Capabilities]| sets.iter().copied().fold(Capabilities::NONE, Capabilities::with);
    let (add, drop) = (all_of(&args.cap_add), all_of(&args.cap_drop));
    privileges.capabilities = match privileges.capabilities.with(add) {
        Capabilities::ALL => Capabilities::ALL.without(drop),
        _ => privileges.capabilities.without(drop).with(add),
    };
    for option in args.security_opt {
        match option {
            SecurityOpt::NoNewPrivileges(on) => privileges.no_new_privileges = on,
            SecurityOpt::Unmask => privileges.masks = false,
            SecurityOpt::Seccomp(seccomp) => privileges.seccomp = seccomp,
            SecurityOpt::AppArmor(profile) => privileges.apparmor = profile,
            SecurityOpt::Selinux(part, value) => *part(&mut privileges.selinux) = Some(value),
            SecurityOpt::SelinuxOff => privileges.selinux = SelinuxLabel::default(),
        }
    }
    if let Some(path) = args.seccomp {
        privileges.seccomp = Seccomp::Profile(path);
    }
    if let Seccomp::Profile(path) = &mut privileges.seccomp {
        *path = cwd.join(&*path);
    }
    for limit in args.ulimit {
        privileges.limits.retain(|earlier| earlier.resource != limit.resource);
        privileges.limits.push(limit);
    }
    privileges
}

/// Parses `--cap-add` and `--cap-drop`.
fn capability(text: &str) -> Result<Capabilities, String> {
    Capabilities::named(text)
        .ok_or_else(|| "expected ALL, or a name of capabilities(7) such as NET_ADMIN".to_owned())
}

/// Parses `--security-opt`, in docker's and podman's words.
fn security_opt(text: &str) -> Result<SecurityOpt, String> {
    let (name, value) = text.split_once(['=', ':']).unzip();
    match (name.unwrap_or(text), value) {
        ("no-new-privileges", None | Some("true")) => Ok(SecurityOpt::NoNewPrivileges(true)),
        ("no-new-privileges", Some("false")) => Ok(SecurityOpt::NoNewPrivileges(false)),
        ("unmask", Some("ALL" | "all")) | ("systempaths", Some("unconfined")) => Ok(SecurityOpt::Unmask),
        ("seccomp", Some("unconfined")) => Ok(SecurityOpt::Seccomp(Seccomp::Unconfined)),
        ("seccomp", Some("builtin" | "default")) => Ok(SecurityOpt::Seccomp(Seccomp::Docker)),
        ("seccomp", Some(path)) if !path.is_empty() => {
            Ok(SecurityOpt::Seccomp(Seccomp::Profile(path.into())))
        }
        ("apparmor", Some("unconfined")) => Ok(SecurityOpt::AppArmor(None)),
        ("apparmor", Some(profile)) if is_label(profile) => {
            Ok(SecurityOpt::AppArmor(Some(profile.to_owned())))
        }
        ("label", Some("disable")) => Ok(SecurityOpt::SelinuxOff),
        ("label", Some(part)) => selinux(part),
        _ => Err("expected no-new-privileges[=true|false], unmask=ALL, seccomp=unconfined or seccomp=FILE, \
                  apparmor=PROFILE, or label=type:TYPE"
            .to_owned()),
    }
}

/// A part of an SELinux context, as `type:container_t`.
fn selinux(text: &str) -> Result<SecurityOpt, String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    let part: fn(&mut SelinuxLabel) -> &mut Option<String> = match name {
        "user" => |label| &mut label.user,
        "role" => |label| &mut label.role,
        "type" => |label| &mut label.kind,
        "level" => |label| &mut label.level,
        _ => return Err("expected label=disable, or label= with user:, role:, type: or level:".to_owned()),
    };
    if !is_label(value) {
        return Err(format!("'{value}' cannot be a part of an SELinux label"));
    }
    Ok(SecurityOpt::Selinux(part, value.to_owned()))
}

/// Whether the kernel could take `text` for a label: one word.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Parses `--ulimit`.
fn ulimit(text: &str) -> Result<Limit, String> {
    let (name, values) = text.split_once('=').ok_or("expected NAME=SOFT[:HARD], such as nofile=1024:4096")?;
    let resource = Resource::named(name)
        .ok_or_else(|| format!("'{name}' is not a limit of limits.conf(5) such as nofile, core or stack"))?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let limit = Limit { resource, soft: limit_value(soft)?, hard: limit_value(hard)? };
    if limit.soft > limit.hard {
        return Err("the soft limit is above the hard one".to_owned());
    }
    Ok(limit)
}

fn limit_value(text: &str) -> Result<u64, String> {
    match text {
        "-1" | "unlimited" => Ok(Limit::NONE),
        text => text.parse().map_err(|_| format!("'{text}' is neither a number nor -1 for no limit")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        confinement: ConfinementArgs,
    }

    fn settled(options: &str) -> Privileges {
        let line = Line::try_parse_from(["run"].into_iter().chain(options.split_whitespace()));
        let line = line.unwrap_or_else(|error| panic!("{error}"));
        privileges(line.confinement, &Mapping::Single, Path::new("/home/me"))
    }

    fn refusal(options: &str) -> String {
        let line = Line::try_parse_from(["run"].into_iter().chain(options.split_whitespace()));
        line.expect_err("not to be taken").to_string()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        let bits = |options: &str| settled(options).capabilities.bits();
        let dockers = 0xa804_25fb;
        assert_eq!(bits(""), dockers);
        assert_eq!(bits("--cap-add NET_ADMIN --cap-add cap_bpf"), dockers | 1 << 12 | 1 << 39);
        assert_eq!(bits("--cap-drop chown --cap-drop SYS_ADMIN"), dockers & !1);
        assert_eq!(bits("--cap-drop ALL --cap-add CHOWN"), 1);
        assert_eq!(bits("--cap-add ALL --cap-drop CHOWN"), !1);
        assert!(refusal("--cap-add NET_ADMINS").contains("capabilities(7)"));
    }

    #[test]
    fn security_options_are_dockers_and_podmans() {
        assert_eq!(settled("--security-opt no-new-privileges"), Privileges::default());
        assert!(!settled("--security-opt no-new-privileges:false").no_new_privileges);
        assert!(!settled("--security-opt unmask=ALL").masks);
        assert!(!settled("--security-opt systempaths=unconfined").masks);
        assert_eq!(settled("--security-opt seccomp=unconfined").seccomp, Seccomp::Unconfined);
        let profile = Seccomp::Profile("/home/me/a.json".into());
        assert_eq!(settled("--security-opt seccomp=a.json").seccomp, profile);
        assert_eq!(settled("--seccomp /home/me/a.json").seccomp, profile);
        assert_eq!(settled("--security-opt apparmor=mine").apparmor.as_deref(), Some("mine"));
        assert_eq!(settled("--security-opt apparmor=mine --security-opt apparmor=unconfined").apparmor, None);
        assert!(refusal("--security-opt apparmor=").contains("apparmor=PROFILE"));
        let label = settled("--security-opt label=type:container_t --security-opt label:level:s0:c1").selinux;
        let parts = (label.user, label.kind.as_deref(), label.level.as_deref());
        assert_eq!(parts, (None, Some("container_t"), Some("s0:c1")));
        assert_eq!(settled("--security-opt label=disable"), Privileges::default());
        assert!(refusal("--security-opt label=filetype:x").contains("label=disable"));
        assert!(refusal("--security-opt unmask").contains("unmask=ALL"));
    }

    #[test]
    fn set_id_programs_work_where_there_are_several_users() {
        let of = |options: &[&str], mapping: Mapping| {
            let line = Line::try_parse_from(["run"].iter().chain(options)).expect("no mistake");
            privileges(line.confinement, &mapping, Path::new("/")).no_new_privileges
        };
        assert!(of(&[], Mapping::Single));
        assert!(!of(&[], Mapping::Auto));
        assert!(of(&["--security-opt", "no-new-privileges"], Mapping::Auto));
    }

    #[test]
    fn privileged_is_all_that_is_not_taken_back() {
        assert_eq!(settled("--privileged"), Privileges::unconfined());
        let mostly = settled("--privileged --cap-drop SYS_ADMIN --security-opt seccomp=builtin");
        assert_eq!(mostly.capabilities.bits(), !(1 << 21));
        assert_eq!((mostly.seccomp, mostly.masks), (Seccomp::Docker, false));
    }

    #[test]
    fn limits_are_dockers_and_the_last_of_a_name_counts() {
        let limit = |resource, soft, hard| Limit { resource, soft, hard };
        let seen = settled("--ulimit nofile=5 --ulimit core=-1 --ulimit nofile=10:20").limits;
        let core = limit(Resource::Core, Limit::NONE, Limit::NONE);
        assert_eq!(seen, [core, limit(Resource::OpenFiles, 10, 20)]);
        for (text, cause) in
            [("nofile", "SOFT"), ("files=1", "limits.conf"), ("cpu=2:1", "above"), ("cpu=x", "number")]
        {
            assert!(refusal(&format!("--ulimit {text}")).contains(cause), "{text}");
        }
    }
}
