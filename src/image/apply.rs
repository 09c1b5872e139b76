//! What an image says of itself, and what the command line says over it, become a container.
//!
//! As docker does it: the command line counts more than the image, and the image more than rnet's defaults. Not taken
//! over are volumes, as every write is forgotten anyway, and health checks.

use std::ffi::OsString;
use std::str::FromStr;

use nix::sys::signal::Signal;

use super::layout::ImageConfig;
use crate::config::{Config, Container, GroupName, Mapping, Platform, Publish, User, UserName};

/// The first real-time signal that is free for use (signal(7), NPTL), and how many follow it.
const REAL_TIME: (i32, i32) = (34, 30);

/// What of the machine matters to an image.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) platform: Platform,
    /// Users other than the caller can exist in a container.
    pub(super) maps_others: bool,
}

/// Completes `config` by what the image says; also what the user should know.
pub(super) fn apply(config: &mut Config, image: &ImageConfig, machine: &Machine) -> Vec<String> {
    let mut notes = Vec::new();
    let platform = &machine.platform;
    if let Some(other) = image.platform.as_ref().filter(|image| image.architecture != platform.architecture) {
        notes.push(format!("the image is for {other}, and this machine is {platform}"));
    }
    command(config, image);
    environment(config, image);
    if config.container.workdir.is_none() && image.workdir.starts_with('/') {
        config.container.workdir = Some(image.workdir.clone().into());
    }
    notes.extend(user(config, image, machine.maps_others));
    if let Some(signal) = signal(&image.stop_signal).filter(|_| !config.image.stop_signal_given) {
        config.life.stop_signal = signal;
    }
    if config.image.publish_all {
        publish(config, image);
    }
    notes
}

/// An entry point of the command line's leaves the image's command out, which is meant for the image's own.
fn command(config: &mut Config, image: &ImageConfig) {
    let wanted = &config.image;
    let all = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let (mut command, arguments) = match &wanted.entrypoint {
        None => (all(&image.entrypoint), all(&image.command)),
        Some(entrypoint) if entrypoint.is_empty() => (Vec::new(), Vec::new()),
        Some(entrypoint) => (vec![entrypoint.clone()], Vec::new()),
    };
    let given = !wanted.arguments.is_empty();
    command.extend(if given { wanted.arguments.clone() } else { arguments });
    if !command.is_empty() {
        config.container.command = command;
    }
}

/// The image's user counts if nobody else is asked for, and if there can be any but root. Why not, if so.
fn user(config: &mut Config, image: &ImageConfig, maps_others: bool) -> Option<String> {
    if is_root(&image.user) || config.container.identity.user.is_some() {
        return None;
    }
    let identity = &mut config.container.identity;
    let single = identity.mapping == Mapping::Single;
    let stays_root =
        |why: &str| Some(format!("the image is for user {}, but runs as root: {why}", image.user));
    match parsed_user(&image.user) {
        None => return stays_root("that is no name of a user"),
        Some(_) if single && config.image.ids_given => return stays_root("--userns=single knows no others"),
        Some(_) if single && !maps_others => {
            return stays_root("you have no subordinate ids; `rnet run --userns=auto` tells how to get some");
        }
        user => identity.user = user,
    }
    if single {
        identity.mapping = Mapping::Auto;
    }
    let home_is_given = image.env.iter().any(|(name, _)| name == "HOME")
        || config.image.env.iter().any(|(name, _)| name == "HOME");
    if !home_is_given {
        config.container.env.retain(|(name, _)| name != "HOME");
    }
    None
}

/// `NAME|UID[:GROUP|GID]`.
fn parsed_user(text: &str) -> Option<User> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let usual = |word: &str| {
        !word.is_empty() && !word.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control())
    };
    let group = group.filter(|group| !group.is_empty());
    (usual(name) && group.is_none_or(usual)).then(|| User {
        name: name.parse().map_or_else(|_| UserName::Name(name.to_owned()), UserName::Id),
        group: group
            .map(|group| group.parse().map_or_else(|_| GroupName::Name(group.to_owned()), GroupName::Id)),
    })
}

/// `SIGNAL`, `SIGRTMIN+N` or a number; `None` for anything else.
fn signal(text: &str) -> Option<i32> {
    let (first, more) = REAL_TIME;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset
            .parse()
            .ok()
            .filter(|offset| (0..=more).contains(offset))
            .map(|offset: i32| first + offset);
    }
    let known = Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32);
    known.or_else(|| name.parse().ok().filter(|number| (1..=first + more).contains(number)))
}

fn environment(config: &mut Config, image: &ImageConfig) {
    let image = image.env.iter().map(|(name, value)| (name.into(), value.into()));
    for (name, value) in image.chain(config.image.env.iter().cloned()) {
        set(&mut config.container, name, value);
    }
}

fn set(container: &mut Container, name: OsString, value: OsString) {
    match container.env.iter_mut().find(|(other, _)| *other == name) {
        Some((_, old)) => *old = value,
        None => container.env.push((name, value)),
    }
}

/// Ports that are published already stay where they are.
fn publish(config: &mut Config, image: &ImageConfig) {
    for (port, transport) in &image.ports {
        let published = &mut config.network.publish;
        let is_new = |other: &Publish| (other.guest_port, other.transport) != (*port, *transport);
        if published.iter().all(is_new) {
            published.push(Publish {
                host_addr: None,
                host_port: None,
                host_interface: None,
                guest_addr: None,
                guest_port: *port,
                transport: *transport,
            });
        }
    }
}

fn is_root(user: &str) -> bool {
    matches!(user, "" | "0" | "root" | "0:0" | "root:root" | "0:root" | "root:0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command, Surroundings};
    use crate::config::Transport;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words(&["/entry", "-x"]),
            command: words(&["by", "default"]),
            env: vec![("PATH".into(), "/image".into()), ("WORD".into(), "image".into())],
            workdir: "/srv".into(),
            ports: vec![(80, Transport::Tcp), (53, Transport::Udp)],
            ..ImageConfig::default()
        }
    }

    fn applied(options: &str, image: &ImageConfig) -> (Config, Vec<String>) {
        let surroundings = Surroundings {
            env: vec![("MINE".into(), "caller".into())],
            cwd: "/".into(),
            hostname: "host".into(),
            cores: 1,
            stdin_is_tty: false,
            host_subnets: Vec::new(),
            random: [0; 48],
        };
        let args = ["rnet", "run"].into_iter().chain(options.split_whitespace());
        let mut config = match cli::parse(args.map(Into::into), &surroundings) {
            Ok(Command::Run(request)) => *request.config,
            other => panic!("{options}: {other:?}"),
        };
        let platform = Platform::parse("linux/amd64").expect("a platform");
        let machine = Machine { platform, maps_others: !options.contains("poor") };
        let notes = apply(&mut config, image, &machine);
        (config, notes)
    }

    fn command(options: &str) -> Vec<OsString> {
        applied(options, &image()).0.container.command
    }

    #[test]
    fn the_command_line_counts_more_than_the_image() {
        assert_eq!(command("x.tar"), ["/entry", "-x", "by", "default"]);
        assert_eq!(command("x.tar mine"), ["/entry", "-x", "mine"]);
        assert_eq!(command("x.tar -- mine"), ["/entry", "-x", "mine"]);
        assert_eq!(command("--entrypoint /other x.tar"), ["/other"]);
        assert_eq!(command("--entrypoint /other x.tar mine"), ["/other", "mine"]);
        assert_eq!(command("--entrypoint= x.tar mine"), ["mine"]);
        assert_eq!(command("--entrypoint= x.tar"), ["/bin/sh"]);
        let silent = ImageConfig::default();
        assert_eq!(applied("x.tar", &silent).0.container.command, ["/bin/sh"]);
    }

    #[test]
    fn variables_come_from_the_image_unless_they_are_asked_for() {
        let (config, _) = applied("-e WORD=line -e MINE x.tar", &image());
        let value = |name: &str| {
            let found = config.container.env.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.to_string_lossy().into_owned())
        };
        let values = ["PATH", "WORD", "MINE", "HOME"].map(|name| value(name).unwrap_or_default());
        assert_eq!(values, ["/image", "line", "caller", "/root"]);
    }

    #[test]
    fn the_working_directory_is_the_images_unless_given() {
        let workdir = |options| applied(options, &image()).0.container.workdir;
        assert_eq!(workdir("x.tar"), Some("/srv".into()));
        assert_eq!(workdir("-w /mine x.tar"), Some("/mine".into()));
    }

    #[test]
    fn exposed_ports_are_published_when_asked_for_and_not_twice() {
        let published = |options| {
            let (config, _) = applied(options, &image());
            config.network.publish.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(published("x.tar").is_empty());
        assert_eq!(published("-P x.tar"), ["80/tcp", "53/udp"]);
        assert_eq!(published("-P -p 8080:80 x.tar"), ["8080:80/tcp", "53/udp"]);
    }

    #[test]
    fn a_foreign_platform_is_told() {
        let other = ImageConfig { platform: Platform::parse("linux/arm64/v8"), ..image() };
        assert!(applied("x.tar", &other).1.concat().contains("linux/arm64/v8"));
        let same = ImageConfig { platform: Platform::parse("linux/amd64"), user: "0:0".into(), ..image() };
        assert_eq!(applied("x.tar", &same).1, Vec::<String>::new());
    }

    #[test]
    fn the_images_user_counts_where_there_can_be_one() {
        let www = ImageConfig { user: "www-data:33".into(), ..image() };
        let identity = |options| {
            let (config, notes) = applied(options, &www);
            let user = config.container.identity.user.map(|user| user.name);
            (user, config.container.identity.mapping, notes.concat())
        };
        let named = |name: &str| Some(UserName::Name(name.into()));
        assert_eq!(identity("x.tar"), (named("www-data"), Mapping::Auto, String::new()));
        assert_eq!(identity("--userns=keep-id x.tar"), (named("www-data"), Mapping::KeepId, String::new()));
        assert_eq!(identity("-u other x.tar"), (named("other"), Mapping::Auto, String::new()));
        for options in ["poor.tar", "--userns=single x.tar"] {
            let (user, mapping, notes) = identity(options);
            assert_eq!((user, mapping), (None, Mapping::Single));
            assert!(notes.contains("runs as root"), "{notes}");
        }
        let home = |options| applied(options, &www).0.container.env.iter().any(|(name, _)| name == "HOME");
        assert!(!home("x.tar") && home("-e HOME=/x x.tar") && home("poor.tar"));
        let user = parsed_user("1000:staff").expect("a user");
        assert_eq!((user.name, user.group), (UserName::Id(1000), Some(GroupName::Name("staff".into()))));
        assert_eq!([parsed_user("a b"), parsed_user(":5")], [None, None]);
    }

    #[test]
    fn the_images_stop_signal_counts_unless_another_is_asked_for() {
        let systemd = ImageConfig { stop_signal: "SIGRTMIN+3".into(), ..image() };
        let stop = |options, image| applied(options, image).0.life.stop_signal;
        assert_eq!((stop("x.tar", &systemd), stop("--stop-signal TERM x.tar", &systemd)), (37, 15));
        assert_eq!(stop("x.tar", &image()), 15);
        assert_eq!(
            ["QUIT", "sigint", "9", "", "65", "RTMIN+31", "NO"].map(signal),
            [Some(3), Some(2), Some(9), None, None, None, None]
        );
    }
}
