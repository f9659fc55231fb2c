//! CPUs to bind threads to: sched_setaffinity(2), on systems that have it.

#[cfg(any(target_os = "linux", target_os = "freebsd", target_os = "dragonfly"))]
mod system {
    use std::io;

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    /// Those that the calling thread may use.
    pub(crate) fn usable() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
    }

    /// Binds the calling thread to one.
    pub(crate) fn pin(cpu: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)
            .map_err(|e| io::Error::other(format!("binding a thread to CPU {cpu}: {e}")))
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd", target_os = "dragonfly")))]
mod system {
    use std::io;

    pub(crate) fn usable() -> io::Result<Vec<usize>> {
        Err(unsupported())
    }

    pub(crate) fn pin(_: usize) -> io::Result<()> {
        Err(unsupported())
    }

    fn unsupported() -> io::Error {
        let why = "this system binds no thread to a CPU; do without pin_to_cpus";
        io::Error::new(io::ErrorKind::Unsupported, why)
    }
}

pub(crate) use self::system::{pin, usable};
