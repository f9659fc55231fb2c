//! Who takes part, in what, and how each is built.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{Around, Process, told};

/// What a contestant can be asked to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Echo,
    Udp,
    Http,
    Timers,
    Tasks,
    RoundTrips,
    /// Echo on several loops.
    Acceptors,
    /// Echo by loops that wait in their own ways.
    Waiting,
}

impl Task {
    /// The word for it on a contestant's command line.
    fn word(self) -> &'static str {
        match self {
            Task::Echo | Task::Acceptors | Task::Waiting => "echo",
            Task::Udp => "udp",
            Task::Http => "http",
            Task::Timers => "timers",
            Task::Tasks => "tasks",
            Task::RoundTrips => "roundtrips",
        }
    }
}

/// A program that takes part.
#[derive(Clone, Copy)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    program: Program,
    does: &'static [Task],
}

#[derive(Clone, Copy)]
enum Program {
    /// A program of this package, and a word for how it is to run.
    Own { program: &'static str, manner: &'static str },
    /// The same, of one that needs the feature `peers`.
    Peer { program: &'static str, manner: &'static str },
    /// An example of the library.
    Example(&'static str),
    /// A source file in `servers/native`, and the libraries that it needs.
    Native { source: &'static str, needs: &'static str, package: &'static str },
}

/// The practical limit, which the others are compared with.
pub(crate) const BY_HAND: &str = "by hand";
/// The one this is about.
pub(crate) const RUDUO: &str = "ruduo";

/// The hand-written one first, then its kin and the one this is about, then the others.
pub(crate) const CONTESTANTS: &[Contestant] = {
    use Program::{Example, Native, Own, Peer};
    use Task::{Acceptors, Echo, Http, RoundTrips, Tasks, Timers, Udp, Waiting};
    &[
        Contestant {
            name: BY_HAND,
            program: Own { program: "bench-epoll", manner: "" },
            does: &[Echo, Udp, RoundTrips, Acceptors, Waiting],
        },
        Contestant {
            name: "by hand, batched",
            program: Own { program: "bench-epoll", manner: "-batched" },
            does: &[Udp],
        },
        Contestant {
            name: "by hand, spins",
            program: Own { program: "bench-epoll", manner: "-spinning" },
            does: &[Waiting],
        },
        Contestant {
            name: RUDUO,
            program: Own { program: "bench-ruduo", manner: "" },
            does: &[Echo, Udp, Timers, Tasks, RoundTrips, Waiting],
        },
        Contestant {
            name: "ruduo, looks for 1 ms",
            program: Own { program: "bench-ruduo", manner: "-busy" },
            does: &[Waiting],
        },
        Contestant {
            name: "ruduo, time of the turn",
            program: Own { program: "bench-ruduo", manner: "-of-turn" },
            does: &[Timers],
        },
        Contestant {
            name: "one acceptor",
            program: Own { program: "bench-ruduo", manner: "-one-acceptor" },
            does: &[Acceptors],
        },
        Contestant {
            name: "acceptor per loop",
            program: Own { program: "bench-ruduo", manner: "-acceptors" },
            does: &[Acceptors],
        },
        Contestant { name: RUDUO, program: Example("http_hello"), does: &[Http] },
        Contestant {
            name: "mio",
            program: Peer { program: "bench-mio", manner: "" },
            does: &[Echo, Udp],
        },
        Contestant {
            name: "calloop",
            program: Peer { program: "bench-calloop", manner: "" },
            does: &[Echo, Timers, Tasks, RoundTrips],
        },
        Contestant {
            name: "tokio",
            program: Peer { program: "bench-tokio", manner: "" },
            does: &[Echo, Udp, Timers, Tasks, RoundTrips],
        },
        Contestant {
            name: "tokio threads",
            program: Peer { program: "bench-tokio", manner: "-threads" },
            does: &[Echo],
        },
        Contestant {
            name: "monoio",
            program: Peer { program: "bench-monoio", manner: "" },
            does: &[Echo],
        },
        Contestant {
            name: "libevent",
            program: Native {
                source: "libevent.c",
                needs: "-levent_core -levent_pthreads -lpthread",
                package: "libevent-dev",
            },
            does: &[Echo, Timers, Tasks, RoundTrips],
        },
        Contestant {
            name: "libuv",
            program: Native { source: "libuv.c", needs: "-luv -lpthread", package: "libuv1-dev" },
            does: &[Echo, Udp, Timers, Tasks, RoundTrips],
        },
        Contestant {
            name: "asio",
            program: Native { source: "asio.cpp", needs: "-lpthread", package: "libasio-dev" },
            does: &[Echo, Udp, Timers, Tasks, RoundTrips],
        },
        Contestant {
            name: "hyper",
            program: Peer { program: "bench-hyper", manner: "" },
            does: &[Http],
        },
        Contestant {
            name: "may_minihttp",
            program: Peer { program: "bench-may-minihttp", manner: "" },
            does: &[Http],
        },
    ]
};

/// A contestant whose program is there.
pub(crate) struct Ready {
    pub(crate) name: &'static str,
    program: PathBuf,
    words: Vec<String>,
}

impl Ready {
    pub(crate) fn start(&self, cpu: Option<usize>, around: &Around) -> io::Result<Process> {
        Process::start(&self.program, &self.words, cpu, around)
    }
}

/// Who does the task, built; and who cannot take part here, with the reason.
pub(crate) struct Field {
    pub(crate) ready: Vec<Ready>,
    pub(crate) missing: Vec<(&'static str, String)>,
}

/// Builds whoever does the task and is `wanted`.
pub(crate) fn field(task: Task, wanted: impl Fn(&str) -> bool) -> io::Result<Field> {
    let mut field = Field { ready: Vec::new(), missing: Vec::new() };
    for contestant in CONTESTANTS {
        if !contestant.does.contains(&task) || !wanted(contestant.name) {
            continue;
        }
        match contestant.program.build() {
            Ok(program) => field.ready.push(Ready {
                name: contestant.name,
                program,
                words: contestant.program.words(task),
            }),
            // Without these two there is nothing to compare.
            Err(e) if matches!(contestant.program, Program::Own { .. } | Program::Example(_)) => {
                return Err(told(e, format!("{} cannot be built", contestant.name)));
            }
            Err(e) => {
                eprintln!("SKIPPED: {}: {e}", contestant.name);
                field.missing.push((contestant.name, e.to_string()));
            }
        }
    }
    Ok(field)
}

impl Program {
    fn words(self, task: Task) -> Vec<String> {
        const ANY_PORT: &str = "127.0.0.1:0";
        match self {
            Program::Example(_) => vec!["--listen".into(), ANY_PORT.into()],
            Program::Own { manner, .. } | Program::Peer { manner, .. } => {
                vec![format!("{}{manner}", task.word()), ANY_PORT.into()]
            }
            Program::Native { .. } => vec![task.word().into(), ANY_PORT.into()],
        }
    }

    fn build(self) -> io::Result<PathBuf> {
        let target = target_dir()?;
        let release = target.join("release");
        match self {
            Program::Own { program, .. } => {
                cargo(&target, &["-p", "ruduo-bench", "--bin", program])?;
                Ok(release.join(program))
            }
            Program::Peer { program, .. } => {
                cargo(&target, &["-p", "ruduo-bench", "--features", "peers", "--bin", program])?;
                Ok(release.join(program))
            }
            Program::Example(name) => {
                cargo(&target, &["-p", "ruduo", "--example", name])?;
                Ok(release.join("examples").join(name))
            }
            Program::Native { source, needs, package } => native(&target, source, needs, package),
        }
    }
}

fn cargo(target: &Path, words: &[&str]) -> io::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(target)
        .args(words)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("cargo could not build it")) }
}

fn native(target: &Path, source: &str, needs: &str, package: &str) -> io::Result<PathBuf> {
    let folder = target.join("ruduo-bench");
    std::fs::create_dir_all(&folder)?;
    let sources = workspace().join("benches/servers/native");
    let path = sources.join(source);
    let program = folder.join(path.file_stem().unwrap_or_default());
    if is_newest(&program, &sources)? {
        return Ok(program);
    }
    let compiler: &[&str] =
        if source.ends_with(".cpp") { &["c++", "-std=c++17"] } else { &["cc", "-std=gnu11"] };
    let output = Command::new(compiler[0])
        .args(&compiler[1..])
        .args(["-O2", "-g", "-Wall", "-Wextra", "-o"])
        .arg(&program)
        .arg(&path)
        .args(needs.split(' '))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| told(e, format!("{} cannot be run", compiler[0])))?;
    if output.status.success() {
        return Ok(program);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let first = complaint.lines().find(|line| line.contains("error")).unwrap_or_default();
    Err(io::Error::other(format!("it needs the Debian package {package} ({first})")))
}

/// Whether the program is there, and younger than all of its possible sources.
fn is_newest(program: &Path, sources: &Path) -> io::Result<bool> {
    let Ok(built) = program.metadata().and_then(|data| data.modified()) else { return Ok(false) };
    for source in std::fs::read_dir(sources)? {
        if source?.metadata()?.modified()? >= built {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The folder of the whole project.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where this program was built, and so where the contestants are.
pub(crate) fn target_dir() -> io::Result<PathBuf> {
    std::env::current_exe()?
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .ok_or_else(|| io::Error::other("this program does not stand in a target folder"))
}
