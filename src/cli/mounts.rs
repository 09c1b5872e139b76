//! `--mount` and `--tmpfs`, in docker's grammar.

use std::path::Path;

use super::values::{VolumeSpec, check_volume_target};
use crate::config::Tmpfs;

/// `--mount`, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MountSpec {
    Bind(VolumeSpec),
    Tmpfs(Tmpfs),
}

/// Values of `--mount` by their names.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a str>,
    source: Option<&'a str>,
    target: Option<&'a str>,
    read_only: bool,
    size: Option<&'a str>,
    mode: Option<&'a str>,
}

/// Parses `--tmpfs`: `DST[:OPTION,...]`.
pub(super) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    check_volume_target(Path::new(target))?;
    let mut tmpfs = Tmpfs::at(target.into());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        set_tmpfs_option(&mut tmpfs, option)?;
    }
    Ok(tmpfs)
}

fn set_tmpfs_option(tmpfs: &mut Tmpfs, option: &str) -> Result<(), String> {
    let (name, value) = name_and_value(option);
    match (name, value) {
        ("rw", None) => tmpfs.read_only = false,
        ("ro", None) => tmpfs.read_only = true,
        ("exec", None) => tmpfs.executable = true,
        ("noexec", None) => tmpfs.executable = false,
        ("suid", None) => tmpfs.set_id = true,
        ("nosuid", None) => tmpfs.set_id = false,
        ("nodev", None) => {}
        ("size", Some(value)) => tmpfs.size = Some(size(value)?),
        ("mode", Some(value)) => tmpfs.mode = mode(value)?,
        ("nr_inodes", Some(value)) => {
            let inodes = value.parse().map_err(|_| format!("'{value}' is not a number of inodes"))?;
            tmpfs.inodes = Some(inodes);
        }
        _ => {
            return Err(format!(
                "'{option}' is none of size=BYTES, mode=MODE, nr_inodes=N, ro, rw, exec, noexec, suid, nosuid, nodev"
            ));
        }
    }
    Ok(())
}

/// Parses `--mount`: `type=bind,source=SRC,target=DST[,readonly]` or
/// `type=tmpfs,target=DST[,tmpfs-size=BYTES][,tmpfs-mode=MODE][,readonly]`. A field in double quotes may hold commas.
pub(super) fn mount(text: &str) -> Result<MountSpec, String> {
    let list = split_fields(text)?;
    let mut fields = Fields::default();
    for field in &list {
        set_field(&mut fields, field)?;
    }
    let target = fields.target.ok_or("target=DST is missing")?;
    match fields.kind {
        Some("bind") => bind(&fields, target),
        Some("tmpfs") => mounted_tmpfs(&fields, target),
        None | Some("volume") => {
            Err("there are no named volumes, which is what a mount without type=bind or \
             type=tmpfs would be; type=bind,source=DIR keeps files in a directory of yours"
                .to_owned())
        }
        Some("image") => {
            Err("there are no images; unpack it, and mount the directory with type=bind,source=DIR"
                .to_owned())
        }
        Some(kind) => Err(format!("type '{kind}' is neither bind nor tmpfs")),
    }
}

fn set_field<'a>(fields: &mut Fields<'a>, field: &'a str) -> Result<(), String> {
    match name_and_value(field) {
        ("type", Some(value)) => fields.kind = Some(value),
        ("source" | "src", Some(value)) => fields.source = Some(value),
        ("target" | "dst" | "destination", Some(value)) => fields.target = Some(value),
        ("readonly" | "ro", None | Some("true" | "1")) => fields.read_only = true,
        ("readonly" | "ro", Some("false" | "0")) => fields.read_only = false,
        ("tmpfs-size", Some(value)) => fields.size = Some(value),
        ("tmpfs-mode", Some(value)) => fields.mode = Some(value),
        ("bind-propagation", Some("private" | "rprivate")) => {}
        ("bind-propagation", _) => {
            return Err("what is mounted later on one side never shows on the other; \
                        bind-propagation is rprivate"
                .to_owned());
        }
        _ => {
            return Err(format!(
                "'{field}' is none of type=, source=, target=, readonly, tmpfs-size=, tmpfs-mode="
            ));
        }
    }
    Ok(())
}

fn bind(fields: &Fields<'_>, target: &str) -> Result<MountSpec, String> {
    if fields.size.is_some() || fields.mode.is_some() {
        return Err("tmpfs-size and tmpfs-mode belong to type=tmpfs".to_owned());
    }
    check_volume_target(Path::new(target))?;
    let source = fields.source.filter(|source| !source.is_empty()).ok_or("source=SRC is missing")?;
    let read_only = fields.read_only;
    Ok(MountSpec::Bind(VolumeSpec { source: source.into(), target: target.into(), read_only }))
}

fn mounted_tmpfs(fields: &Fields<'_>, target: &str) -> Result<MountSpec, String> {
    if fields.source.is_some() {
        return Err("source belongs to type=bind; a tmpfs starts empty".to_owned());
    }
    check_volume_target(Path::new(target))?;
    let mut tmpfs = Tmpfs::at(target.into());
    tmpfs.read_only = fields.read_only;
    tmpfs.size = fields.size.map(size).transpose()?;
    if let Some(value) = fields.mode {
        tmpfs.mode = mode(value)?;
    }
    Ok(MountSpec::Tmpfs(tmpfs))
}

fn name_and_value(field: &str) -> (&str, Option<&str>) {
    field.split_once('=').map_or((field, None), |(name, value)| (name, Some(value)))
}

/// The fields of a line of CSV (RFC 4180), which is what docker takes.
fn split_fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("starts with one and only grows");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted { Err("a double quote is not closed".to_owned()) } else { Ok(fields) }
}

/// Bytes with `k`, `m` or `g`, or a share of memory with `%`, as the kernel takes it (tmpfs(5)). Docker's `b` behind
/// it is dropped.
fn size(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let size = lower.strip_suffix('b').unwrap_or(&lower);
    let digits = size.strip_suffix(['k', 'm', 'g', '%']).unwrap_or(size);
    let number = digits.parse::<u64>().ok().filter(|&number| number > 0 && !digits.starts_with('+'));
    match number {
        Some(_) => Ok(size.to_owned()),
        None => Err(format!("size '{text}' is not a number of bytes such as 67108864, 64m or 1g, nor 50%")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o7777);
    mode.ok_or_else(|| format!("mode '{text}' is not an octal number such as 1777 or 755"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_is_closed_unless_opened() {
        let plain = tmpfs("/cache").expect("valid");
        assert_eq!(plain, Tmpfs::at("/cache".into()));
        assert!(!plain.executable && !plain.set_id && plain.mode == 0o1777);
        let given = tmpfs("/cache:rw,exec,size=64M,mode=750,nr_inodes=100").expect("valid");
        assert!(given.executable && !given.read_only);
        assert_eq!((given.size.as_deref(), given.mode, given.inodes), (Some("64m"), 0o750, Some(100)));
    }

    #[test]
    fn mount_takes_dockers_names_and_quotes() {
        let text = "type=bind,\"src=/a,\"\"b\",dst=/x,readonly";
        let spec = VolumeSpec { source: "/a,\"b".into(), target: "/x".into(), read_only: true };
        assert_eq!(mount(text), Ok(MountSpec::Bind(spec)));
        let Ok(MountSpec::Tmpfs(memory)) = mount("type=tmpfs,destination=/x,tmpfs-size=1gb,tmpfs-mode=0700")
        else {
            panic!("a tmpfs");
        };
        assert_eq!((memory.size.as_deref(), memory.mode), (Some("1g"), 0o700));
    }

    #[test]
    fn refusals_name_what_to_write() {
        for (text, part) in [
            ("target=/x", "no named volumes"),
            ("type=volume,source=data,target=/x", "type=bind,source=DIR"),
            ("type=image,target=/x", "no images"),
            ("type=npipe,target=/x", "neither bind nor tmpfs"),
            ("type=bind,target=/x", "source=SRC is missing"),
            ("type=bind,source=/x", "target=DST is missing"),
            ("type=bind,source=/a,target=/x,tmpfs-size=1", "belong to type=tmpfs"),
            ("type=tmpfs,source=/a,target=/x", "belongs to type=bind"),
            ("type=tmpfs,target=x", "absolute"),
            ("type=tmpfs,target=/x,tmpfs-size=big", "size 'big'"),
            ("type=tmpfs,target=/x,tmpfs-mode=9", "mode '9'"),
            ("type=bind,source=/a,target=/x,bind-propagation=shared", "rprivate"),
            ("type=bind,\"source=/a,target=/x", "quote"),
            ("type=bind,source=/a,target=/x,colour=red", "'colour=red'"),
        ] {
            let error = mount(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in ["cache", "/", "/x:size=0", "/x:size=+1", "/x:dev", "/x:mode=77777"] {
            assert!(tmpfs(text).is_err(), "{text}");
        }
    }
}
