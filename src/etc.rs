//! The formats of `/etc`: the host's resolver configuration is read, the guest's files are written. Users and groups of
//! both are in `accounts`. Pure.
//!
//! Of resolv.conf(5) what a stub needs is understood: `nameserver`, `search`, `domain` and `options`. Lines
//! in any other form are skipped, as the C libraries do.

mod accounts;

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

pub use self::accounts::{Account, SubordinateRange, account, subordinate_ranges};
use crate::config::{Config, EtcFiles, MAX_DNS_SERVERS};

/// Names under which a guest finds the gateway, rnet's own and those that other runtimes made a habit.
const HOST_NAMES: &str = "host.rnet.internal host.containers.internal host.docker.internal";

const LOOPBACK4: &str = "127.0.0.1\tlocalhost\n";
const LOOPBACK6: &str = "::1\tlocalhost ip6-localhost ip6-loopback\n";

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Servers in order, none twice; at most [`MAX_DNS_SERVERS`].
    pub nameservers: Vec<IpAddr>,
    /// Domains of the last `search` or `domain` line, joined by blanks.
    pub search: String,
    /// Words of all `options` lines, joined by blanks.
    pub options: String,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf. A server on a scoped address (`fe80::1%eth0`) is left out, because
    /// its interface has no meaning without the scope. Without any server it is the local one, as
    /// resolv.conf(5) says.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            conf.add_line(line);
        }
        if conf.nameservers.is_empty() {
            conf.nameservers.push(Ipv4Addr::LOCALHOST.into());
        }
        conf
    }

    fn add_line(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        // A keyword stands at the very beginning of its line.
        let Some(keyword) = words.next().filter(|word| line.starts_with(word)) else {
            return;
        };
        match keyword {
            "nameserver" => self.add_nameserver(words.next().unwrap_or_default()),
            "search" => self.search = joined(words),
            "domain" => self.search = joined(words.take(1)),
            "options" => self.options = joined(self.options.split_ascii_whitespace().chain(words)),
            _ => {}
        }
    }

    fn add_nameserver(&mut self, word: &str) {
        let Ok(addr) = word.parse() else {
            return;
        };
        if self.nameservers.len() < MAX_DNS_SERVERS && !self.nameservers.contains(&addr) {
            self.nameservers.push(addr);
        }
    }
}

fn joined<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.take_while(|word| !word.starts_with(['#', ';'])).collect::<Vec<_>>().join(" ")
}

/// The files that a container finds in its `/etc`; `host` is the host's own resolver configuration.
pub fn files(config: &Config, host: &ResolvConf) -> EtcFiles {
    EtcFiles {
        resolv_conf: resolv_conf(config, host),
        hosts: hosts(config),
        hostname: format!("{}\n", config.container.hostname),
    }
}

/// The files of a container without a network.
pub fn files_alone(config: &Config) -> EtcFiles {
    let hostname = &config.container.hostname;
    EtcFiles {
        resolv_conf: String::new(),
        hosts: format!("{LOOPBACK4}{LOOPBACK6}127.0.0.1\t{hostname}\n::1\t{hostname}\n"),
        hostname: format!("{hostname}\n"),
    }
}

/// The files of a container in a network whose others have these.
pub fn files_shared(config: &Config, resolv_conf: String, mut hosts: String) -> EtcFiles {
    let hostname = &config.container.hostname;
    let names = |line: &str| {
        let entry = line.split('#').next().unwrap_or_default();
        entry.split_ascii_whitespace().skip(1).any(|name| name == hostname)
    };
    if !hosts.lines().any(names) {
        if !hosts.is_empty() && !hosts.ends_with('\n') {
            hosts.push('\n');
        }
        push(&mut hosts, format_args!("127.0.0.1\t{hostname}\n"));
    }
    EtcFiles { resolv_conf, hosts, hostname: format!("{hostname}\n") }
}

fn resolv_conf(config: &Config, host: &ResolvConf) -> String {
    let network = &config.network;
    let mut text = String::new();
    for server in network.dns_addresses() {
        push(&mut text, format_args!("nameserver {server}\n"));
    }
    let domains = network.domain.as_deref().into_iter().chain([host.search.as_str()]);
    let search: Vec<&str> = domains.filter(|search| !search.is_empty()).collect();
    if !search.is_empty() {
        push(&mut text, format_args!("search {}\n", search.join(" ")));
    }
    if !host.options.is_empty() {
        push(&mut text, format_args!("options {}\n", host.options));
    }
    text
}

fn hosts(config: &Config) -> String {
    let network = &config.network;
    let hostname = &config.container.hostname;
    let mut text = String::from(LOOPBACK4);
    if network.ipv6.is_some() {
        text.push_str(LOOPBACK6);
    }
    if let Some(plan) = &network.ipv4 {
        push(&mut text, format_args!("{}\t{hostname}\n", plan.guest));
    }
    if let Some(plan) = &network.ipv6 {
        push(&mut text, format_args!("{}\t{hostname}\n", plan.guest));
    }
    push(&mut text, format_args!("{}\t{HOST_NAMES}\n", network.gateway()));
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("writing to a String succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command, Surroundings};

    #[test]
    fn a_usual_file_is_understood() {
        let conf = ResolvConf::parse(
            "# made by a tool\nnameserver 127.0.0.53\nnameserver 2001:db8::53\noptions edns0 trust-ad\n\
             search lan example.org\n",
        );
        assert_eq!(conf.nameservers, ["127.0.0.53", "2001:db8::53"].map(ip));
        assert_eq!(conf.search, "lan example.org");
        assert_eq!(conf.options, "edns0 trust-ad");
    }

    #[test]
    fn oddities_are_read_as_the_c_library_reads_them() {
        let conf = ResolvConf::parse(
            "search first\ndomain second third\nnameserver\t9.9.9.9 trailing\n nameserver 1.1.1.1\n\
             nameserver9.9.9.10\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n;nameserver 8.8.8.8\n\
             options ndots:2\noptions rotate # why\nNAMESERVER 8.8.4.4\nnameserver 9.9.9.9\r\n",
        );
        assert_eq!(conf.nameservers, [ip("9.9.9.9")]);
        assert_eq!(conf.search, "second");
        assert_eq!(conf.options, "ndots:2 rotate");
    }

    #[test]
    fn without_servers_the_local_one_is_asked() {
        assert_eq!(ResolvConf::parse("").nameservers, [ip("127.0.0.1")]);
        assert_eq!(ResolvConf::parse("search lan\n").nameservers, [ip("127.0.0.1")]);
    }

    #[test]
    fn the_number_of_servers_is_bounded() {
        let text: String = (0..100).map(|last| format!("nameserver 192.0.2.{last}\n")).collect();
        assert_eq!(ResolvConf::parse(&text).nameservers.len(), MAX_DNS_SERVERS);
    }

    #[test]
    fn the_guest_asks_the_forwarder_and_keeps_the_hosts_search_list() {
        let host = ResolvConf::parse("nameserver 192.0.2.1\nsearch lan\noptions ndots:2\n");
        let files = files(&config("run -h web ./rootfs true"), &host);
        assert_eq!(
            files.resolv_conf,
            "nameserver 10.0.2.3\nnameserver fd00::3\nsearch lan\noptions ndots:2\n"
        );
        assert_eq!(files.hostname, "web\n");
        assert_eq!(
            files.hosts,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.2.100\tweb\nfd00::100\tweb\n\
             10.0.2.2\thost.rnet.internal host.containers.internal host.docker.internal\n"
        );
    }

    #[test]
    fn without_ipv6_the_files_name_none() {
        let files = files(&config("run --no-ipv6 ./rootfs true"), &ResolvConf::default());
        assert_eq!(files.resolv_conf, "nameserver 10.0.2.3\n");
        assert!(!files.hosts.contains("::"));
    }

    #[test]
    fn in_a_shared_network_the_own_name_is_added_once() {
        let config = config("run -h web ./rootfs true");
        let hosts = |text: &str| files_shared(&config, String::new(), text.to_owned()).hosts;
        assert_eq!(hosts("127.0.0.1 localhost # web"), "127.0.0.1 localhost # web\n127.0.0.1\tweb\n");
        assert_eq!(hosts("192.0.2.7\tdb web\n"), "192.0.2.7\tdb web\n");
        assert_eq!(files_alone(&config).resolv_conf, "");
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn config(words: &str) -> Config {
        let surroundings = Surroundings {
            env: Vec::new(),
            cwd: "/".into(),
            hostname: "host".to_owned(),
            cores: 1,
            stdin_is_tty: false,
            host_subnets: Vec::new(),
            random: [0; cli::RANDOM_BYTES],
        };
        let args = std::iter::once("rnet").chain(words.split_whitespace());
        match cli::parse(args.map(Into::into), &surroundings) {
            Ok(Command::Run(request)) => *request.config,
            other => panic!("{words}: {other:?}"),
        }
    }
}
