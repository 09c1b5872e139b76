//! What a cgroup is told (Documentation/admin-guide/cgroup-v2.rst): an allowance becomes files and their contents. Pure.

use std::collections::BTreeSet;

use crate::config::{Allowance, Swap};

/// One file of a cgroup to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller that has it.
    pub(super) controller: &'static str,
    /// Its name.
    pub(super) file: &'static str,
    /// What to write.
    pub(super) value: String,
    /// A kernel without the file has nothing to limit there.
    pub(super) optional: bool,
}

/// All files for `allowance`.
pub(super) fn settings(allowance: &Allowance) -> Vec<Setting> {
    let setting = |file: &'static str, value: Option<String>| {
        let controller = file.split('.').next().unwrap_or_default();
        value.map(|value| Setting { controller, file, value, optional: file == "memory.swap.max" })
    };
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    let weight = |number: Option<u16>| number.map(|number| number.to_string());
    let swap = allowance.swap.map(|swap| match swap {
        Swap::Bytes(bytes) => bytes.to_string(),
        Swap::Unlimited => "max".to_owned(),
    });
    let quota = allowance.cpu_quota_us.map(|quota| format!("{quota} {}", Allowance::CPU_PERIOD_US));
    let all = [
        setting("memory.max", text(allowance.memory_bytes)),
        setting("memory.swap.max", swap),
        setting("cpu.max", quota),
        setting("cpu.weight", weight(allowance.cpu_weight)),
        setting("cpuset.cpus", allowance.cpus.clone()),
        setting("pids.max", text(allowance.processes)),
        setting("io.weight", weight(allowance.io_weight)),
    ];
    all.into_iter().flatten().collect()
}

/// The controllers of `settings`, each once.
pub(super) fn controllers(settings: &[Setting]) -> BTreeSet<&'static str> {
    settings.iter().map(|setting| setting.controller).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let allowance = Allowance {
            memory_bytes: Some(100 << 20),
            swap: Some(Swap::Bytes(0)),
            cpu_quota_us: Some(50_000),
            cpu_weight: Some(100),
            cpus: Some("0-1".into()),
            processes: Some(20),
            io_weight: Some(7),
        };
        let settings = settings(&allowance);
        let written: Vec<_> =
            settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect();
        assert_eq!(
            written,
            [
                "memory.max=104857600",
                "memory.swap.max=0",
                "cpu.max=50000 100000",
                "cpu.weight=100",
                "cpuset.cpus=0-1",
                "pids.max=20",
                "io.weight=7"
            ]
        );
        let controllers: Vec<_> = controllers(&settings).into_iter().collect();
        assert_eq!(controllers, ["cpu", "cpuset", "io", "memory", "pids"]);
    }

    #[test]
    fn nothing_is_written_for_no_limit() {
        assert_eq!(settings(&Allowance::default()), []);
        let only = Allowance { swap: Some(Swap::Unlimited), ..Allowance::default() };
        assert_eq!(settings(&only).pop().map(|setting| setting.value), Some("max".to_owned()));
    }
}
