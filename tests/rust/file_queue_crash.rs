//! Processes that share a file, and are killed (I33). A child is this test program again; its
//! environment says what to do.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use desist::Time;
use desist::work::{Bytes, Failure, FileError, FileQueue, PutOptions, QueueOptions, RetryPolicy};

use crate::file_queue::Folder;
use crate::support::{PAST, Parker};

const WORKERS: usize = 2;

fn options(max_attempts: u32) -> QueueOptions {
    QueueOptions {
        retry: RetryPolicy {
            max_attempts,
            ..RetryPolicy::default()
        },
        ..QueueOptions::default()
    }
}

/// Start a child that does this. It writes a byte to its error output for each step.
fn start(what: &str, file: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "file_queue_crash::child", "--nocapture"])
        .env("DESIST_CHILD", what)
        .env("DESIST_FILE", file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn hear(child: &mut Child, bytes: usize) -> bool {
    let mut heard = vec![0; bytes];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut heard)
        .is_ok()
}

fn kill(mut child: Child) {
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
}

fn say() {
    io::stderr().write_all(b".").unwrap();
}

/// The work of the children; not a test.
#[test]
fn child() {
    let (Ok(what), Ok(file)) = (std::env::var("DESIST_CHILD"), std::env::var("DESIST_FILE")) else {
        return;
    };
    let queue = FileQueue::open(&file, options(1000)).unwrap();
    match what.as_str() {
        "work" => work_until_drained(&queue, Path::new(&file)),
        "hold" => {
            let lease = queue.lease(PAST).unwrap();
            assert!(lease.is_some());
            say();
            let _ = io::stdin().read(&mut [0]); // until killed
        }
        "exec" => {
            use std::os::unix::process::CommandExt;
            assert!(queue.lease(PAST).unwrap().is_some());
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", "file_queue_crash::child", "--nocapture"]);
            panic!("{}", again.env("DESIST_CHILD", "hold").exec());
        }
        "fork" => fork(queue, &file),
        other => panic!("{other}"),
    }
}

/// Fork, and check that the child can do nothing with its parent's file.
#[allow(unsafe_code)] // fork
fn fork(queue: FileQueue, file: &str) {
    // SAFETY: no other thread of this process is inside the allocator or the core for long.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused = Some(FileError::Forked);
        let is_refused = queue.counts().err() == refused
            && queue.lease(PAST).err() == refused
            && FileQueue::open(file, options(1)).err() == refused;
        drop(queue);
        // SAFETY: ends the process.
        unsafe { libc::_exit(i32::from(!is_refused)) };
    }
    let mut status = -1;
    // SAFETY: `status` is a valid place to write to.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    assert!(
        queue.lease(PAST).unwrap().is_some(),
        "the child did no harm"
    );
}

#[test]
fn i37_a_forked_child_can_do_nothing_with_its_parents_file() {
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), options(1)).unwrap();
    queue.put(*b"item", PutOptions::default(), PAST).unwrap();
    drop(queue);
    let child = start("fork", &folder.file()).wait_with_output().unwrap();
    assert!(
        child.status.success(),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

fn work_until_drained(queue: &FileQueue, file: &Path) {
    let effects = OpenOptions::new()
        .append(true)
        .create(true)
        .open(file.with_extension("effects"))
        .unwrap();
    let effects = Arc::new(effects);
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (queue, effects) = (queue.clone(), effects.clone());
            thread::spawn(move || {
                while let Some(lease) = queue.lease(Time::NEVER).unwrap() {
                    let effect = format!("{} {}\n", lease.id, lease.attempt);
                    (&*effects).write_all(effect.as_bytes()).unwrap();
                    say();
                    queue.ack(lease.id, lease.epoch).unwrap();
                }
            })
        })
        .collect();
    assert!(queue.drain(Time::NEVER).unwrap());
    queue.close();
    for worker in workers {
        worker.join().unwrap();
    }
}

/// A pseudo-random number below `end`, the same in each run.
fn draw(state: &mut u64, end: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % end
}

fn refill(file: &Path) -> u64 {
    const MORE: u64 = 500;
    let queue = FileQueue::open(file, options(1000)).unwrap();
    let item: Bytes = vec![7; 200].into();
    let all = (0..MORE).map(|_| (item.clone(), PutOptions::default()));
    assert_eq!(
        queue.put_many(all, PAST).unwrap().unwrap().len() as u64,
        MORE
    );
    MORE
}

/// Let several processes work through the items, killing one after the other.
fn work_off(processes: usize, mut kills: u64) {
    let (folder, wanted) = (Folder::new(), kills);
    let mut items = refill(&folder.file());
    let mut running: Vec<Child> = (0..processes)
        .map(|_| start("work", &folder.file()))
        .collect();
    let mut lot = 42;
    while kills > 0 {
        let mut victim = running.remove(0);
        let steps = 1 + usize::try_from(draw(&mut lot, 40)).unwrap();
        if hear(&mut victim, steps) {
            kills -= 1;
        } else {
            items += refill(&folder.file()); // the children have finished first
        }
        kill(victim);
        running.push(start("work", &folder.file()));
    }
    let kills = wanted;
    for mut child in running {
        io::copy(child.stderr.as_mut().unwrap(), &mut io::sink()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    let effects = fs::read_to_string(folder.file().with_extension("effects")).unwrap();
    let mut attempts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for line in effects.lines() {
        let (id, attempt) = line.split_once(' ').unwrap();
        attempts
            .entry(id.parse().unwrap())
            .or_default()
            .push(attempt.parse().unwrap());
    }
    assert_eq!(attempts.len() as u64, items, "lost");
    let reruns = effects.lines().count() as u64 - items;
    assert!(reruns <= kills * WORKERS as u64, "{reruns} reruns");
    for (id, attempts) in attempts {
        assert!(
            attempts.is_sorted_by(|one, next| one < next),
            "{id}: {attempts:?}"
        );
    }
    let queue = FileQueue::open(folder.file(), options(1000)).unwrap();
    let counts = queue.counts().unwrap();
    assert_eq!(
        (counts.done, counts.ready, counts.leased, counts.dead),
        (items, 0, 0, 0)
    );
}

#[test]
fn i33_nothing_is_lost_when_the_only_process_is_killed_again_and_again() {
    work_off(1, 50);
}

#[test]
fn i33_nothing_is_lost_when_one_of_two_processes_is_killed_again_and_again() {
    work_off(2, 50);
}

#[test]
fn i12_i33_a_waiter_gets_the_item_that_a_killed_process_held() {
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), options(1000)).unwrap();
    let id = queue
        .put(*b"item", PutOptions::default(), PAST)
        .unwrap()
        .unwrap();
    let mut child = start("hold", &folder.file());
    assert!(hear(&mut child, 1));
    let theirs = queue.clone();
    let worker = Parker::spawn_parked(move || theirs.lease(Time::NEVER).unwrap().unwrap());
    kill(child);
    let lease = worker.join();
    assert_eq!((lease.id, lease.attempt), (id, 2));
    assert_eq!(queue.ack(lease.id, lease.epoch), Ok(()));
}

#[test]
fn i30_i33_an_item_that_kills_its_process_is_dead_in_the_end() {
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), options(2)).unwrap();
    let id = queue
        .put(*b"poison", PutOptions::default(), PAST)
        .unwrap()
        .unwrap();
    let first = queue.lease(PAST).unwrap().unwrap();
    queue
        .nack(id, first.epoch, desist::work::Nack::AtOnce, None)
        .unwrap();
    let mut child = start("hold", &folder.file());
    assert!(hear(&mut child, 1));
    let pid = child.id();
    kill(child);
    // The file watch notices the death, and then nothing is left to do.
    assert!(queue.drain(Time::NEVER).unwrap());
    let dead = queue.dead().unwrap();
    assert_eq!(
        dead,
        [(
            id,
            Bytes::from(*b"poison"),
            vec![Failure::OwnerDied { pid }]
        )]
    );
}

#[test]
fn a_process_that_replaced_itself_holds_nothing() {
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), options(1000)).unwrap();
    queue.put(*b"item", PutOptions::default(), PAST).unwrap();
    drop(queue);
    // Its first life leases the item, its second finds it again.
    let mut child = start("exec", &folder.file());
    assert!(hear(&mut child, 1));
    kill(child);
}

#[test]
fn i12_an_item_put_by_one_process_wakes_another() {
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), options(1000)).unwrap();
    queue.put(*b"first", PutOptions::default(), PAST).unwrap();
    let mut child = start("work", &folder.file());
    assert!(hear(&mut child, 1));
    // The child drains the queue and ends, and this process is woken by that.
    assert!(queue.drain(Time::NEVER).unwrap());
    assert!(child.wait().unwrap().success());
    assert_eq!(queue.counts().unwrap().done, 1);
}
