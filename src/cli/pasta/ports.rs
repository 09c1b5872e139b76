//! How pasta(1) writes ports: `[BIND/]ITEM[,ITEM]...`, where an item is `PORT[-PORT][:PORT[-PORT]]` or `~PORT[-PORT]`,
//! or one of the words `none`, `auto` and `all`.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::config::IfName;

/// The ports that are given to clients if the kernel does not say.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// What one option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// Nothing.
    None,
    /// Whatever is listened on.
    Auto,
    /// These.
    Ports(Ports),
}

/// Single ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Where they are bound.
    pub(super) bind: Bind,
    /// Pairs of the port that is bound and the one that it leads to, in order.
    pub(super) pairs: Vec<(u16, u16)>,
    /// Only exclusions were given: all that can be had is meant.
    pub(super) all_but: bool,
}

/// Where ports are bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bind {
    /// `None` is everywhere.
    pub(super) address: Option<IpAddr>,
    /// `None` is every interface.
    pub(super) interface: Option<IfName>,
}

/// Understands `text`; `may_bind` says whether an address may stand in it, `ephemeral` which ports are left out where
/// only exclusions are given. `None` if it is not of this form.
pub(super) fn parse(text: &str, may_bind: bool, ephemeral: Option<(u16, u16)>) -> Option<Spec> {
    match text {
        "none" => return Some(Spec::None),
        "auto" => return Some(Spec::Auto),
        "" => return None,
        _ => {}
    }
    let (bind, items) = match text.split_once('/') {
        Some((bind, items)) if may_bind => (self::bind(bind)?, items),
        Some(_) => return None,
        None => (Bind::default(), text),
    };
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
        wanted.extend(others.into_iter().flatten().map(|(first, last)| (first..=last, first..=last)));
    }
    let is_excluded = |port: &u16| excluded.iter().any(|range| range.contains(port));
    let pairs = wanted.into_iter().flat_map(|(from, to)| from.zip(to)).filter(|(from, _)| !is_excluded(from));
    Some(Spec::Ports(Ports { bind, pairs: pairs.collect(), all_but }))
}

/// `ADDR`, `[ADDR]`, `ADDR%IF` or `%IF`.
fn bind(text: &str) -> Option<Bind> {
    let (address, interface) = match text.split_once('%') {
        Some((address, interface)) => (address, Some(IfName::new(interface)?)),
        None => (text, None),
    };
    let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        _ if address.is_empty() && interface.is_some() => None,
        Some(inner) => Some(IpAddr::from(inner.parse::<Ipv6Addr>().ok()?)),
        None => Some(address.parse().ok()?),
    };
    Some(Bind { address, interface })
}

/// A range, and the one that it leads to.
fn mapped(text: &str) -> Option<(RangeInclusive<u16>, RangeInclusive<u16>)> {
    let Some((from, to)) = text.split_once(':') else {
        let from = range(text)?;
        return Some((from.clone(), from));
    };
    let (from, to) = (range(from)?, range(to)?);
    let length = |range: &RangeInclusive<u16>| range.end() - range.start();
    (length(&from) == length(&to)).then_some((from, to))
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
        ] {
            let Some(Spec::Ports(ports)) = parse(text, true, None) else { panic!("{text}") };
            let told: Vec<String> = ports.pairs.iter().map(|(from, to)| format!("{from}>{to}")).collect();
            assert_eq!((shown(ports.bind).as_str(), told.join(" ").as_str()), (bind, pairs), "{text}");
            assert!(!ports.all_but);
        }
    }

    #[test]
    fn words_stand_for_themselves() {
        assert_eq!(parse("none", true, None), Some(Spec::None));
        assert_eq!(parse("auto", false, None), Some(Spec::Auto));
    }

    #[test]
    fn exclusions_alone_mean_all_others_that_are_not_for_clients() {
        let Some(Spec::Ports(ports)) = parse("~2-65530", true, Some((100, 65_533))) else { panic!("ports") };
        assert_eq!(ports.pairs, [(1, 1), (65_534, 65_534), (65_535, 65_535)]);
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
        ] {
            assert_eq!(parse(text, true, None), None, "{text}");
        }
        assert_eq!(parse("127.0.0.1/80", false, None), None, "where no address may stand");
    }

    fn shown(bind: Bind) -> String {
        let parts =
            [bind.address.map(|address| address.to_string()), bind.interface.map(|name| name.to_string())];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}
