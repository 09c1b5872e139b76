//! A thread that lives in its own network and mount namespaces and runs closures there.
//!
//! Sockets belong to the namespace in which they were made, so only making them must happen inside. Programs
//! started inside die with the thread (`setpriv --pdeathsig`, or by SIGKILL at its end), and the namespaces vanish with the
//! last of both.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};

type Job = Box<dyn FnOnce() + Send>;

/// A machine of the small world, as far as the kernel is concerned.
pub(crate) struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
}

impl Space {
    /// Fresh namespaces: no interface but a loopback that is down, mounts private.
    pub(crate) fn new() -> nix::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (report, entered) = mpsc::channel();
        let thread = thread::spawn(move || {
            let result = enter();
            let failed = result.is_err();
            if report.send(result).is_err() || failed {
                return;
            }
            queue.into_iter().for_each(|job| job());
        });
        let tid = entered.recv().expect("the thread reports before it ends")?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), tid })
    }

    /// The thread's id, by which `ip` names its network namespace.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// Runs `job` inside and returns what it returns; a panic in it is the caller's.
    pub(crate) fn within<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job = move || {
            let _ = answer.send(catch_unwind(AssertUnwindSafe(job)));
        };
        let jobs = self.jobs.as_ref().expect("present until drop");
        jobs.send(Box::new(job)).expect("the thread waits for jobs");
        match result.recv().expect("every job answers") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Space {
    /// Kills what has made itself independent of the thread that started it.
    fn clear(&self) {
        let namespace = |path: String| fs::read_link(path).ok();
        let Some(ours) = namespace(format!("/proc/self/task/{}/ns/mnt", self.tid)) else { return };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(|pid| *pid != Pid::this().as_raw()) {
            if namespace(format!("/proc/{pid}/ns/mnt")).as_ref() == Some(&ours) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.clear();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn enter() -> nix::Result<i32> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    Ok(gettid().as_raw())
}
