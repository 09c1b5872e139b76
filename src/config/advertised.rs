//! What a gateway tells guests about names: servers to ask, and domains to search.

use std::net::IpAddr;

/// What DHCP, DHCPv6 and router advertisements tell about names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Servers, at most [`crate::config::MAX_DNS_SERVERS`]; `None` is the network's own forwarder.
    pub servers: Option<Vec<IpAddr>>,
    /// Domains in which short names are looked for.
    pub search: SearchList,
}

/// Domains in the encoding of RFC 1035 section 3.1, one after the other, without compression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchList {
    wire: Vec<u8>,
}

impl SearchList {
    /// What one DHCPv4 option holds (RFC 2132 section 2).
    pub const MAX_BYTES: usize = 255;
    /// Longest part of a name (RFC 1035 section 2.3.4).
    const MAX_LABEL_BYTES: usize = 63;

    /// Adds a domain such as `example.org`; the error says why it cannot be told.
    pub fn push(&mut self, domain: &str) -> Result<(), &'static str> {
        let mut name = Vec::new();
        for label in domain.strip_suffix('.').unwrap_or(domain).split('.') {
            let len = u8::try_from(label.len()).unwrap_or(u8::MAX);
            let is_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if len == 0 || usize::from(len) > Self::MAX_LABEL_BYTES || !label.bytes().all(is_label) {
                return Err("it is no domain");
            }
            name.push(len);
            name.extend(label.bytes());
        }
        name.push(0);
        if self.wire.len() + name.len() > Self::MAX_BYTES {
            return Err("the list is too long");
        }
        self.wire.extend(name);
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// All of them as they are sent.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_sent_label_by_label() {
        let mut list = SearchList::default();
        assert!(list.is_empty());
        for domain in ["example.org", "lan."] {
            assert_eq!(list.push(domain), Ok(()));
        }
        assert_eq!(list.wire(), b"\x07example\x03org\x00\x03lan\x00");
    }

    #[test]
    fn what_is_no_domain_or_has_no_room_is_left_out() {
        let mut list = SearchList::default();
        for text in ["", ".", "a..b", "a b", "é.org", &"x".repeat(64)] {
            assert_eq!(list.push(text), Err("it is no domain"), "{text:?}");
        }
        assert!(list.is_empty());
        let long = ["x".repeat(63), "y".repeat(63), "z".repeat(63)].join(".");
        assert_eq!(list.push(&long), Ok(()));
        assert_eq!(list.push(&long), Err("the list is too long"));
        assert_eq!(list.wire().len(), 3 * 64 + 1);
    }
}
