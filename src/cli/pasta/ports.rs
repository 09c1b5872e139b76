//! How pasta(1) writes ports: `[BIND/]ITEM[,ITEM]...`, where an item is `PORT[-PORT][:[ADDR/]PORT[-PORT]]` or
//! `~PORT[-PORT]`, or one of the words `none`, `[BIND/]auto` and `all`.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::config::{BindAt, IfName, Publish, Transport};

/// The ports that are given to clients if the kernel does not say.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// What one option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// Nothing.
    None,
    /// Whatever is listened on, bound there.
    Auto(BindAt),
    /// These.
    Ports(Ports),
}

/// Single ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Where they are bound.
    pub(super) bind: BindAt,
    /// In the order in which they were written.
    pub(super) pairs: Vec<Pair>,
    /// Only exclusions were given: all that can be had is meant.
    pub(super) all_but: bool,
}

impl Ports {
    /// What is to be published for them; port 0 is nothing.
    pub(super) fn published(&self, transport: Transport) -> impl Iterator<Item = Publish> {
        let BindAt { address, interface } = self.bind;
        let pairs = self.pairs.iter().filter(|pair| pair.from != 0 && pair.to != 0);
        pairs.map(move |pair| Publish {
            host_addr: address,
            host_port: Some(pair.from),
            host_interface: interface,
            guest_addr: pair.target,
            guest_port: pair.to,
            transport,
        })
    }
}

/// A port, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The port that is bound.
    pub(super) from: u16,
    /// The one that it leads to.
    pub(super) to: u16,
    /// The address that has it; `None` is the guest's own.
    pub(super) target: Option<IpAddr>,
}

/// Understands `text`; `may_bind` says whether addresses may stand in it, `ephemeral` which ports are left out where
/// only exclusions are given. `None` if it is not of this form.
pub(super) fn parse(text: &str, may_bind: bool, ephemeral: Option<(u16, u16)>) -> Option<Spec> {
    match text {
        "none" => return Some(Spec::None),
        "" => return None,
        _ => {}
    }
    if !may_bind && text.contains('/') {
        return None;
    }
    // Behind a colon it is the target's address.
    let bound = text.split_once('/').and_then(|(bind, items)| Some((self::bind(bind)?, items)));
    let (bind, items) = bound.unwrap_or((BindAt::default(), text));
    if items == "auto" {
        return Some(Spec::Auto(bind));
    }
    let mut wanted = Vec::new();
    let mut excluded = Vec::new();
    for item in items.split(',') {
        match item.strip_prefix('~') {
            Some(item) => excluded.push(range(item)?),
            None => wanted.push(mapped(item)?),
        }
    }
    let all_but = wanted.is_empty();
    if all_but {
        let (first, last) = ephemeral.unwrap_or(EPHEMERAL);
        let others = [Some((1, first.saturating_sub(1))), last.checked_add(1).map(|next| (next, u16::MAX))];
        wanted.extend(others.into_iter().flatten().map(|(first, last)| Mapped {
            from: first..=last,
            to: first..=last,
            target: None,
        }));
    }
    let is_excluded = |port: &u16| excluded.iter().any(|range| range.contains(port));
    let pairs = wanted.into_iter().flat_map(Mapped::pairs).filter(|pair| !is_excluded(&pair.from));
    Some(Spec::Ports(Ports { bind, pairs: pairs.collect(), all_but }))
}

/// `ADDR`, `[ADDR]`, `ADDR%IF` or `%IF`.
fn bind(text: &str) -> Option<BindAt> {
    let (address, interface) = match text.split_once('%') {
        Some((address, interface)) => (address, Some(IfName::new(interface)?)),
        None => (text, None),
    };
    let address = match address {
        "" if interface.is_some() => None,
        text => Some(self::address(text)?),
    };
    Some(BindAt { address, interface })
}

/// One of IPv6 may stand in brackets.
fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => Some(inner.parse::<Ipv6Addr>().ok()?.into()),
        None => text.parse().ok(),
    }
}

/// A range, and the one that it leads to.
struct Mapped {
    from: RangeInclusive<u16>,
    to: RangeInclusive<u16>,
    target: Option<IpAddr>,
}

impl Mapped {
    fn pairs(self) -> impl Iterator<Item = Pair> {
        self.from.zip(self.to).map(move |(from, to)| Pair { from, to, target: self.target })
    }
}

fn mapped(text: &str) -> Option<Mapped> {
    let Some((from, to)) = text.split_once(':') else {
        let from = range(text)?;
        return Some(Mapped { to: from.clone(), from, target: None });
    };
    let (target, to) = match to.split_once('/') {
        Some((target, to)) => (Some(address(target)?), to),
        None => (None, to),
    };
    let (from, to) = (range(from)?, range(to)?);
    let length = |range: &RangeInclusive<u16>| range.end() - range.start();
    (length(&from) == length(&to)).then_some(Mapped { from, to, target })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(first..=last)
}

/// Digits only: no sign, no space.
fn port(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        for (text, bind, pairs) in [
            ("22", "", "22>22"),
            ("22:23", "", "22>23"),
            ("22,80", "", "22>22 80>80"),
            ("22-24", "", "22>22 23>23 24>24"),
            ("22-23:32-33", "", "22>32 23>33"),
            ("22-23:32-33,25:35", "", "22>32 23>33 25>35"),
            ("20-25,~21-24", "", "20>20 25>25"),
            ("20-22:30-32,~21", "", "20>30 22>32"),
            ("192.0.2.1/22", "192.0.2.1", "22>22"),
            ("192.0.2.1%eth0/22", "192.0.2.1 eth0", "22>22"),
            ("%eth0/22", "eth0", "22>22"),
            ("::1/5208-5208:5209-5209", "::1", "5208>5209"),
            ("[::1]/22", "::1", "22>22"),
            ("127.0.0.1/5044-5044:5045-5045", "127.0.0.1", "5044>5045"),
            ("65535", "", "65535>65535"),
            ("0", "", "0>0"),
            ("22:10.88.0.2/23", "", "22>10.88.0.2 23"),
            ("192.0.2.1/22-23:10.88.0.2/32-33", "192.0.2.1", "22>10.88.0.2 32 23>10.88.0.2 33"),
            ("22:[fd00::2]/23,24", "", "22>fd00::2 23 24>24"),
            ("::1/22:fd00::2/23", "::1", "22>fd00::2 23"),
        ] {
            let Some(Spec::Ports(ports)) = parse(text, true, None) else { panic!("{text}") };
            let told: Vec<String> = ports.pairs.iter().map(told).collect();
            assert_eq!((shown(ports.bind).as_str(), told.join(" ").as_str()), (bind, pairs), "{text}");
            assert!(!ports.all_but);
        }
    }

    #[test]
    fn words_stand_for_themselves() {
        assert_eq!(parse("none", true, None), Some(Spec::None));
        assert_eq!(parse("auto", false, None), Some(Spec::Auto(BindAt::default())));
        let Some(Spec::Auto(at)) = parse("127.0.0.1%lo/auto", true, None) else { panic!("a word") };
        assert_eq!(shown(at), "127.0.0.1 lo");
        assert_eq!(parse("127.0.0.1/auto", false, None), None);
    }

    #[test]
    fn exclusions_alone_mean_all_others_that_are_not_for_clients() {
        let Some(Spec::Ports(ports)) = parse("~2-65530", true, Some((100, 65_533))) else { panic!("ports") };
        let told: Vec<String> = ports.pairs.iter().map(told).collect();
        assert_eq!(told, ["1>1", "65534>65534", "65535>65535"]);
        assert!(ports.all_but);
    }

    #[test]
    fn all_else_is_refused() {
        for text in [
            "",
            "abc",
            "70000",
            "65536",
            "80-70",
            "80-82:90-91",
            "80,",
            ",80",
            "80,foo",
            "80:",
            ":80",
            "-80",
            "80-",
            "+80",
            "80 ",
            "~",
            "~abc",
            "1:2:3",
            "127.0.0.300/80",
            "/80",
            "127.0.0.1/",
            "127.0.0.1/none",
            "%/80",
            "[127.0.0.1]/80",
            "none,80",
            "1.2.3.4%aaaaaaaaaaaaaaaa/80",
            "80:/81",
            "80:10.88.0.2/",
            "80:10.88.0.2%eth0/81",
            "80:10.88.0.2/81/82",
        ] {
            assert_eq!(parse(text, true, None), None, "{text}");
        }
        assert_eq!(parse("127.0.0.1/80", false, None), None, "where no address may stand");
        assert_eq!(parse("80:127.0.0.1/80", false, None), None, "where no address may stand");
    }

    fn told(pair: &Pair) -> String {
        let target = pair.target.map(|target| format!("{target} ")).unwrap_or_default();
        format!("{}>{target}{}", pair.from, pair.to)
    }

    fn shown(bind: BindAt) -> String {
        let parts =
            [bind.address.map(|address| address.to_string()), bind.interface.map(|name| name.to_string())];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}
