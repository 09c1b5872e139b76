//! What an image says of itself, and what the command line says over it, become a container.
//!
//! As docker does it: the command line counts more than the image, and the image more than rnet's defaults. Not taken
//! over are volumes, as every write is forgotten anyway, and health checks.

use std::ffi::OsString;

use super::layout::ImageConfig;
use crate::config::{Config, Container, Platform, Publish};

/// Completes `config` by what the image says; also what the user should know.
pub(super) fn apply(config: &mut Config, image: &ImageConfig, platform: &Platform) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(other) = image.platform.as_ref().filter(|image| image.architecture != platform.architecture) {
        notes.push(format!("the image is for {other}, and this machine is {platform}"));
    }
    command(config, image);
    environment(config, image);
    if config.container.workdir.is_none() && image.workdir.starts_with('/') {
        config.container.workdir = Some(image.workdir.clone().into());
    }
    if !is_root(&image.user) {
        notes.push(format!("the image wants to run as user {}; it runs as root of its own", image.user));
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
    let name = user.split(':').next().unwrap_or_default();
    matches!(name, "" | "0" | "root")
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
        let machine = Platform::parse("linux/amd64").expect("a platform");
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
    fn what_is_different_from_what_the_image_wants_is_said() {
        let other = ImageConfig {
            platform: Platform::parse("linux/arm64/v8"),
            user: "www-data:www".into(),
            ..ImageConfig::default()
        };
        let notes = applied("x.tar", &other).1.join("\n");
        assert!(notes.contains("linux/arm64/v8") && notes.contains("www-data"), "{notes}");
        let same = ImageConfig { platform: Platform::parse("linux/amd64"), user: "0:0".into(), ..image() };
        assert_eq!(applied("x.tar", &same).1, Vec::<String>::new());
    }
}
