//! Profiles of system calls in JSON: docker's and podman's (`includes`, `excludes`, `archMap`), and `linux.seccomp` of the
//! OCI runtime specification 1.2, which is the same without those; pure.
//!
//! What is absent has the meaning that runc and libseccomp give it: names that a machine does not have are skipped, an
//! error without a number is EPERM, several comparisons of one argument are alternatives, and what is newer than all
//! that a refusing profile names is missing. Members that are not known are ignored, as comments are. Supervision by
//! another process (SCMP_ACT_NOTIFY) is refused. Text of at most [`MAX_BYTES`].

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::config::Capabilities;
use crate::sys::seccomp::{self, ARGUMENTS, Condition, Filter, Test};

/// Docker's own profile has some 20 KiB.
pub(super) const MAX_BYTES: u64 = 1024 * 1024;
/// EPERM, where a profile does not say which error.
const USUAL_ERRNO: u16 = 1;
/// The largest error that the kernel returns (MAX_ERRNO).
const MAX_ERRNO: u16 = 4095;

/// What a profile's conditions are about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// What the command can have at most.
    pub(super) capabilities: Capabilities,
    /// First two numbers of the kernel's release.
    pub(super) kernel: (u32, u32),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Action,
    #[serde(default, deserialize_with = "errno")]
    default_errno_ret: Option<u16>,
    architectures: Option<Vec<Cow<'static, str>>>,
    arch_map: Option<Vec<SubArchitectures>>,
    flags: Option<Vec<Flag>>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubArchitectures {
    architecture: String,
    sub_architectures: Option<Vec<Cow<'static, str>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// Of profiles from before `names`.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: Action,
    #[serde(default, deserialize_with = "errno")]
    errno_ret: Option<u16>,
    args: Option<Vec<Argument>>,
    includes: Option<Selection>,
    excludes: Option<Selection>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    #[serde(deserialize_with = "index")]
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: Operator,
}

/// Where a rule counts; what is absent says nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selection {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    #[serde(default, deserialize_with = "kernel")]
    min_kernel: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Flag {
    /// Of no meaning to a process with one thread.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    AllThreads,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    Speculate,
}

/// The filter that `text` describes, on `host`. The error is a sentence about the text, with a line where it can be said.
pub(super) fn parse(text: &[u8], host: Host) -> Result<Filter, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let otherwise = action(profile.default_action, profile.default_errno_ret);
    let flags = profile.flags.as_deref().unwrap_or(&[Flag::Speculate]);
    let (speculate, log) = (flags.contains(&Flag::Speculate), flags.contains(&Flag::Log));
    Ok(Filter {
        otherwise,
        newer: newer(profile.default_action, otherwise),
        with_32_bit: profile.has_32_bit(),
        speculate,
        log,
        rules: profile
            .syscalls
            .into_iter()
            .flatten()
            .filter(|rule| rule.counts(host))
            .flat_map(Rule::alternatives)
            .filter(|rule| rule.action != otherwise)
            .collect(),
    })
}

fn action(action: Action, errno: Option<u16>) -> seccomp::Action {
    let errno = errno.unwrap_or(USUAL_ERRNO);
    match action {
        Action::Allow => seccomp::Action::ALLOW,
        Action::Errno => seccomp::Action::fail(errno),
        Action::KillThread => seccomp::Action::KILL_THREAD,
        Action::KillProcess => seccomp::Action::KILL_PROCESS,
        Action::Trap => seccomp::Action::TRAP,
        Action::Trace => seccomp::Action::trace(errno),
        Action::Log => seccomp::Action::LOG,
    }
}

/// Programs take the older way where a call is missing, but give up where it is refused.
fn newer(default: Action, otherwise: seccomp::Action) -> seccomp::Action {
    match default {
        Action::Errno | Action::KillThread | Action::KillProcess => seccomp::Action::MISSING,
        Action::Allow | Action::Trap | Action::Trace | Action::Log => otherwise,
    }
}

impl Profile {
    fn has_32_bit(&self) -> bool {
        let Some([native, narrow]) = seccomp::ARCHITECTURES else {
            return false;
        };
        let mut maps = self.arch_map.iter().flatten();
        let below =
            maps.find(|map| map.architecture == native).and_then(|map| map.sub_architectures.as_ref());
        self.architectures.iter().chain(below).flatten().any(|name| name == narrow)
    }
}

impl Rule {
    /// All that is included has to be there, and nothing that is excluded.
    fn counts(&self, host: Host) -> bool {
        let has = |name: &String| {
            Capabilities::named(name).is_some_and(|capability| host.capabilities.contains(capability))
        };
        let here = |name: &String| name == seccomp::DOCKERS_ARCHITECTURE;
        let none = Selection::default();
        let includes = self.includes.as_ref().unwrap_or(&none);
        let excludes = self.excludes.as_ref().unwrap_or(&none);
        includes.caps.iter().flatten().all(has)
            && includes.arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(here))
            && includes.min_kernel.is_none_or(|least| host.kernel >= least)
            && !excludes.caps.iter().flatten().any(has)
            && !excludes.arches.iter().flatten().any(here)
            && excludes.min_kernel.is_none_or(|least| host.kernel < least)
    }

    /// One rule; or if arguments are compared more than once, one for each comparison.
    fn alternatives(self) -> Vec<seccomp::Rule> {
        let calls: Vec<Cow<'static, str>> =
            self.name.into_iter().chain(self.names.into_iter().flatten()).map(Cow::Owned).collect();
        let conditions: Vec<Condition> =
            self.args.into_iter().flatten().map(|argument| argument.condition()).collect();
        let action = action(self.action, self.errno_ret);
        let rule = |conditions| seccomp::Rule { calls: calls.clone(), conditions, action };
        let times = |argument| conditions.iter().filter(|condition| condition.argument == argument).count();
        if (0..ARGUMENTS).all(|argument| times(argument) <= 1) {
            return vec![rule(conditions)];
        }
        conditions.into_iter().map(|condition| rule(vec![condition])).collect()
    }
}

impl Argument {
    fn condition(&self) -> Condition {
        let second = self.value_two.unwrap_or_default();
        let (test, value) = match self.op {
            Operator::NotEqual => (Test::NotEqual, self.value),
            Operator::Less => (Test::Less, self.value),
            Operator::AtMost => (Test::AtMost, self.value),
            Operator::Equal => (Test::Equal, self.value),
            Operator::AtLeast => (Test::AtLeast, self.value),
            Operator::Greater => (Test::Greater, self.value),
            Operator::MaskedEqual => (Test::Masked(self.value), second),
        };
        Condition { argument: self.index, test, value }
    }
}

fn index<'de, D: Deserializer<'de>>(text: D) -> Result<u8, D::Error> {
    let index = u8::deserialize(text)?;
    if index < ARGUMENTS {
        Ok(index)
    } else {
        Err(D::Error::custom("a system call's last argument has index 5"))
    }
}

fn errno<'de, D: Deserializer<'de>>(text: D) -> Result<Option<u16>, D::Error> {
    let errno = Option::<u16>::deserialize(text)?;
    if errno.is_none_or(|errno| errno <= MAX_ERRNO) {
        return Ok(errno);
    }
    Err(D::Error::custom("no error has a number above 4095"))
}

fn kernel<'de, D: Deserializer<'de>>(text: D) -> Result<Option<(u32, u32)>, D::Error> {
    let Some(text) = Option::<String>::deserialize(text)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    release(&text)
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("'{text}' is no kernel release such as 4.8")))
}

/// The first two numbers of a kernel's release, such as 6.1.0-13-amd64.
pub(super) fn release(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let digits = rest.find(|byte: char| !byte.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the kernel is 6.1 and the command has docker's capabilities.
    fn host() -> Host {
        Host { capabilities: Capabilities::default(), kernel: (6, 1) }
    }

    fn filter(text: &str) -> Filter {
        parse(text.as_bytes(), host()).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(text: &str) -> String {
        parse(text.as_bytes(), host()).expect_err("not to be taken")
    }

    /// The calls that a profile's only rule is about, if its member beside them is this.
    fn named(member: &str) -> Vec<Cow<'static, str>> {
        let rule = format!(r#"{{"names": ["mkdir", "sfx"], "action": "SCMP_ACT_ALLOW", {member}}}"#);
        let filter = filter(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#));
        filter.rules.into_iter().flat_map(|rule| rule.calls).collect()
    }

    #[test]
    fn specifications_form_is_understood() {
        let filter = filter(
            r#"{
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                    {"name": "ptrace", "action": "SCMP_ACT_KILL_PROCESS", "args": null},
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [
                        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                        {"index": 5, "value": 18446744073709551615, "op": "SCMP_CMP_NE"}
                    ]}
                ]
            }"#,
        );
        let rule = |calls: &[&'static str], action| seccomp::Rule::of(calls, action);
        let expected = [
            rule(&["mkdir", "mkdirat"], seccomp::Action::fail(13)),
            rule(&["ptrace"], seccomp::Action::KILL_PROCESS),
            rule(&["clone"], seccomp::Action::REFUSE).when(0, Test::Masked(0x7e02_0000), 0).when(
                5,
                Test::NotEqual,
                u64::MAX,
            ),
        ];
        assert_eq!(filter.rules, expected);
        assert_eq!((filter.otherwise, filter.newer), (seccomp::Action::ALLOW, seccomp::Action::ALLOW));
        assert_eq!((filter.log, filter.speculate), (true, false));
        assert_eq!(filter.with_32_bit, seccomp::ARCHITECTURES.is_some());
    }

    #[test]
    fn refusing_profiles_say_that_newer_calls_are_missing() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 22}"#;
        let filter = filter(text);
        assert_eq!((filter.otherwise, filter.newer), (seccomp::Action::fail(22), seccomp::Action::MISSING));
        assert!(filter.speculate && !filter.with_32_bit);
    }

    #[test]
    fn whether_a_command_can_start_shows() {
        let may_start = |default: &str, action: &str, args: &str| {
            let rule = format!(r#"{{"names": ["execve"], "action": "SCMP_ACT_{action}", "args": [{args}]}}"#);
            filter(&format!(r#"{{"defaultAction": "SCMP_ACT_{default}", "syscalls": [{rule}]}}"#))
                .may_allow("execve")
        };
        let some = r#"{"index": 0, "value": 0, "op": "SCMP_CMP_NE"}"#;
        assert!(may_start("ERRNO", "ALLOW", "") && may_start("ERRNO", "TRACE", some));
        assert!(may_start("ALLOW", "KILL", some) && may_start("LOG", "LOG", ""));
        assert!(!may_start("ALLOW", "ERRNO", "") && !may_start("KILL", "TRAP", some));
    }

    #[test]
    fn rules_count_where_their_selection_says() {
        let all = ["mkdir", "sfx"];
        let none: [&str; 0] = [];
        assert_eq!(named(r#""includes": {}, "excludes": {}"#), all);
        assert_eq!(named(r#""includes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}"#), all);
        assert_eq!(named(r#""includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}"#), none);
        assert_eq!(named(r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}"#), none);
        assert_eq!(named(r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_OF_LATER"]}"#), all);
        assert_eq!(named(r#""includes": {"arches": ["s390x"]}"#), none);
        let here = seccomp::DOCKERS_ARCHITECTURE;
        assert_eq!(named(&format!(r#""includes": {{"arches": ["s390x", "{here}"]}}"#)), all);
        assert_eq!(named(&format!(r#""excludes": {{"arches": ["{here}"]}}"#)), none);
        assert_eq!(named(r#""includes": {"minKernel": "4.8"}"#), all);
        assert_eq!(named(r#""includes": {"minKernel": "6.2"}"#), none);
        assert_eq!(named(r#""excludes": {"minKernel": "6.1"}"#), none);
    }

    #[test]
    fn comparisons_of_one_argument_are_alternatives() {
        let rule = r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]}"#;
        let filter = filter(&format!(r#"{{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{rule}]}}"#));
        let read = || seccomp::Rule::of(&["read"], seccomp::Action::ALLOW);
        assert_eq!(filter.rules, [1, 2].map(|value| read().when(1, Test::Equal, value)));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let rule =
            |rule: &str| format!("{{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\"syscalls\": [\n{rule}\n]}}");
        let argument = |argument: &str| {
            rule(&format!(r#"{{"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{{{argument}}}]}}"#))
        };
        for (text, cause) in [
            ("", "EOF while parsing"),
            ("{}", "missing field `defaultAction`"),
            (r#"{"defaultAction": "allow"}"#, "unknown variant `allow`"),
            (&rule(r#"{"names": ["read"]}"#), "missing field `action` at line 3"),
            (&rule(r#"{"names": "read", "action": "SCMP_ACT_ALLOW"}"#), "invalid type: string"),
            (
                &rule(r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#),
                "unknown variant `SCMP_ACT_NOTIFY`",
            ),
            (&rule(r#"{"names": [], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#), "above 4095 at line 3"),
            (&argument(r#""index": 6, "value": 0, "op": "SCMP_CMP_EQ""#), "index 5 at line 3"),
            (&argument(r#""index": 0, "value": -1, "op": "SCMP_CMP_EQ""#), "invalid value: integer `-1`"),
            (&argument(r#""index": 0, "value": 1, "op": "=""#), "unknown variant `=`"),
            (
                &rule(r#"{"action": "SCMP_ACT_TRAP", "includes": {"minKernel": "four"}}"#),
                "'four' is no kernel",
            ),
        ] {
            let error = refusal(text);
            assert!(error.contains(cause), "{text}: {error}");
        }
    }

    #[test]
    fn releases_are_compared_by_two_numbers() {
        assert_eq!(release("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(release("4.8"), Some((4, 8)));
        assert_eq!(release("5.10-rc1"), Some((5, 10)));
        assert_eq!(release("six"), None);
    }
}
