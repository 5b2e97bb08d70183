//! The queue's file when the power fails, the disk is full, or any call of the system fails once: a layer
//! between SQLite and the system that records every write and sync, and can refuse all calls. It is
//! SQLite's default in a child process of its own, so that the other tests keep the real one.
#![allow(unsafe_code)] // SQLite's interface for such layers is in C
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)] // as are its sizes

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use desist::Time;
use desist::work::{Bytes, FileError, FileQueue, Nack, PutOptions, QueueOptions, RetryPolicy};
use rusqlite::ffi;

use crate::file_queue::Folder;
use crate::support::PAST;

// ---------------------------------------------------------------------- the layer

#[derive(Debug, Clone)]
enum Event {
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Sync(String),
    Delete(String),
    /// A put has returned for this item.
    Put(u64),
    /// The work of this item is done, and its ack begins.
    Acking(u64),
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
static RECORDING: AtomicBool = AtomicBool::new(false);
static IS_FULL: AtomicBool = AtomicBool::new(false);
/// How many calls go well until one fails. Negative: none fails any more.
static UNTIL_FAULT: AtomicI64 = AtomicI64::new(-1);

/// Does this call fail?
fn fails() -> bool {
    UNTIL_FAULT.fetch_sub(1, Ordering::SeqCst) == 0
}

fn record(event: Event) {
    if RECORDING.load(Ordering::SeqCst) {
        EVENTS.lock().unwrap().push(event);
    }
}

/// A file of SQLite, in front of the real one.
#[repr(C)]
struct Watched {
    base: ffi::sqlite3_file,
    name: *mut String,
}

/// The real file behind.
unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocates the size that `install` asks for, which is that of both files.
    unsafe { file.cast::<Watched>().add(1).cast() }
}

unsafe fn name_of(file: *mut ffi::sqlite3_file) -> String {
    // SAFETY: set by `open`, freed by `close`.
    unsafe { (*(*file.cast::<Watched>()).name).clone() }
}

fn last_part(path: *const c_char) -> String {
    // SAFETY: SQLite passes a valid path.
    let path = unsafe { CStr::from_ptr(path) }.to_str().unwrap();
    path.rsplit('/').next().unwrap().to_owned()
}

fn default_vfs() -> *mut ffi::sqlite3_vfs {
    // SAFETY: the name ends with a zero, and the VFS is never freed.
    unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) }
}

/// Pass a call on to the real file.
macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => { $(
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> $result {
            // SAFETY: SQLite's arguments are passed on unchanged.
            unsafe { let file = real(file); (*(*file).pMethods).$name.unwrap()(file $(, $arg)*) }
        }
    )* };
}

pass_on! {
    xFileSize(size: *mut ffi::sqlite3_int64) -> c_int;
    xLock(level: c_int) -> c_int;
    xUnlock(level: c_int) -> c_int;
    xCheckReservedLock(answer: *mut c_int) -> c_int;
    xFileControl(what: c_int, about: *mut c_void) -> c_int;
    xSectorSize() -> c_int;
    xDeviceCharacteristics() -> c_int;
    xShmMap(page: c_int, size: c_int, extend: c_int, to: *mut *mut c_void) -> c_int;
    xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
    xShmBarrier() -> ();
    xShmUnmap(delete: c_int) -> c_int;
}

#[allow(non_snake_case)]
unsafe extern "C" fn xClose(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the name was leaked by `open`, and the file is not used after this.
    unsafe {
        drop(Box::from_raw((*file.cast::<Watched>()).name));
        let file = real(file);
        (*(*file).pMethods).xClose.unwrap()(file)
    }
}

#[allow(non_snake_case)]
unsafe extern "C" fn xWrite(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    count: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    if IS_FULL.load(Ordering::SeqCst) || fails() {
        return ffi::SQLITE_FULL;
    }
    // SAFETY: SQLite's arguments are passed on, and the buffer has `count` bytes.
    unsafe {
        let data = std::slice::from_raw_parts(from.cast::<u8>(), count as usize);
        record(Event::Write(name_of(file), at as usize, data.to_vec()));
        let file = real(file);
        (*(*file).pMethods).xWrite.unwrap()(file, from, count, at)
    }
}

#[allow(non_snake_case)]
unsafe extern "C" fn xRead(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    count: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    if fails() {
        return ffi::SQLITE_IOERR_READ;
    }
    // SAFETY: SQLite's arguments are passed on unchanged.
    unsafe {
        let file = real(file);
        (*(*file).pMethods).xRead.unwrap()(file, to, count, at)
    }
}

#[allow(non_snake_case)]
unsafe extern "C" fn xTruncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    if fails() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    // SAFETY: SQLite's arguments are passed on unchanged.
    unsafe {
        record(Event::Truncate(name_of(file), size as usize));
        let file = real(file);
        (*(*file).pMethods).xTruncate.unwrap()(file, size)
    }
}

#[allow(non_snake_case)]
unsafe extern "C" fn xSync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite's file is the one that `open` made. The real sync is left out.
    let name = unsafe { name_of(file) };
    let _ = flags;
    if fails() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    record(Event::Sync(name));
    ffi::SQLITE_OK
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(xClose),
    xRead: Some(xRead),
    xWrite: Some(xWrite),
    xTruncate: Some(xTruncate),
    xSync: Some(xSync),
    xFileSize: Some(xFileSize),
    xLock: Some(xLock),
    xUnlock: Some(xUnlock),
    xCheckReservedLock: Some(xCheckReservedLock),
    xFileControl: Some(xFileControl),
    xSectorSize: Some(xSectorSize),
    xDeviceCharacteristics: Some(xDeviceCharacteristics),
    xShmMap: Some(xShmMap),
    xShmLock: Some(xShmLock),
    xShmBarrier: Some(xShmBarrier),
    xShmUnmap: Some(xShmUnmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on, with room for both files.
    unsafe {
        if fails() {
            (*file).pMethods = ptr::null();
            return ffi::SQLITE_CANTOPEN;
        }
        let vfs = default_vfs();
        let opened = (*vfs).xOpen.unwrap()(vfs, name, real(file), flags, answer);
        (*file).pMethods = ptr::null();
        if opened == ffi::SQLITE_OK {
            let name = if name.is_null() {
                String::new()
            } else {
                last_part(name)
            };
            (*file.cast::<Watched>()).name = Box::into_raw(Box::new(name));
            (*file).pMethods = &raw const METHODS;
        }
        opened
    }
}

unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync: c_int,
) -> c_int {
    if fails() {
        return ffi::SQLITE_IOERR_DELETE;
    }
    record(Event::Delete(last_part(name)));
    let vfs = default_vfs();
    let _ = sync; // the sync of the folder is left out, too
    // SAFETY: SQLite's arguments are passed on unchanged.
    unsafe { (*vfs).xDelete.unwrap()(vfs, name, 0) }
}

/// Make the layer SQLite's default.
fn install() {
    // SAFETY: the default VFS is never freed, and a leaked copy of it is registered.
    unsafe {
        let mut vfs = *default_vfs();
        vfs.szOsFile += size_of::<Watched>() as c_int;
        vfs.zName = c"watched".as_ptr();
        vfs.pNext = ptr::null_mut();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        let vfs = Box::into_raw(Box::new(vfs));
        assert_eq!(ffi::sqlite3_vfs_register(vfs, 1), ffi::SQLITE_OK);
    }
}

// ---------------------------------------------------------------------- the tests

fn run(what: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "file_queue_power::child", "--nocapture"])
        .env("DESIST_POWER", what)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "see the child's panic above");
}

#[test]
fn i33_a_loss_of_power_at_any_write_loses_no_item_that_was_put() {
    run("power");
}

#[test]
fn on_a_full_disk_nothing_changes_and_nothing_is_lost() {
    run("full");
}

#[test]
fn i48_a_call_that_fails_once_loses_no_item_and_leaves_none_leased() {
    run("faults 12 2");
}

#[test]
#[ignore = "takes minutes: make soak"]
fn i48_a_call_that_fails_once_in_the_life_of_two_hundred_items_loses_none() {
    run("faults 200 4");
}

#[test]
fn i48_the_items_of_a_queue_that_was_closed_on_a_full_disk_are_ready_when_there_is_space() {
    run("close");
}

/// The work of the children; not a test.
#[test]
fn child() {
    let what = std::env::var("DESIST_POWER").unwrap_or_default();
    match what.split(' ').collect::<Vec<_>>()[..] {
        ["power"] => lose_power(),
        ["full"] => fill_the_disk(),
        ["close"] => close_on_a_full_disk(),
        ["faults", items, workers] => {
            fail_at_every_call(items.parse().unwrap(), workers.parse().unwrap());
        }
        _ => {}
    }
}

/// One call after the other fails, until the items end before the call is reached.
fn fail_at_every_call(items: usize, workers: usize) {
    install();
    let mut calls = 0;
    loop {
        let folder = Folder::new();
        UNTIL_FAULT.store(calls, Ordering::SeqCst);
        live(&folder.file(), items, workers, calls);
        if UNTIL_FAULT.swap(-1, Ordering::SeqCst) >= 0 {
            break;
        }
        calls += 1;
    }
    assert!(calls > 100, "the layer is not in use: {calls} calls");
}

/// The whole life of the items, one of whose calls fails. As a pool does, a worker whose settlement fails
/// releases its lease.
fn live(path: &Path, items: usize, workers: usize, fault: i64) {
    let options = QueueOptions {
        retry: RetryPolicy {
            max_attempts: 1000,
            backoff: Duration::ZERO,
            ..RetryPolicy::default()
        },
        ..QueueOptions::default()
    };
    let told = AtomicUsize::new(0);
    let again = |error: FileError| {
        assert!(
            matches!(error, FileError::NoSpace | FileError::Failed(_)),
            "{error:?} at call {fault}"
        );
        told.fetch_add(1, Ordering::SeqCst);
    };
    let queue = FileQueue::open(path, options).unwrap_or_else(|error| {
        again(error);
        FileQueue::open(path, options).unwrap()
    });
    let mut put = BTreeSet::new();
    while put.len() < items {
        let item: Bytes = vec![7; 500].into();
        match queue.put(item, PutOptions::default(), Time::NEVER) {
            Ok(id) => _ = put.insert(id.unwrap()),
            Err(error) => again(error),
        }
    }
    let done = Mutex::new(BTreeSet::new());
    thread::scope(|threads| {
        for _ in 0..workers {
            threads.spawn(|| {
                loop {
                    let lease = match queue.lease(Time::NEVER) {
                        Ok(Some(lease)) => lease,
                        Ok(None) => break,
                        Err(error) => {
                            again(error);
                            continue;
                        }
                    };
                    let fresh = lease.attempt == 1 && lease.id % 3 == 0;
                    let settled = if fresh {
                        let nack = queue.nack(lease.id, lease.epoch, Nack::Failed, None);
                        nack.map(drop)
                    } else {
                        done.lock().unwrap().insert(lease.id);
                        let extended = queue.extend(lease.id, lease.epoch, None);
                        extended.and_then(|_| queue.ack(lease.id, lease.epoch))
                    };
                    if let Err(error) = settled {
                        queue.release(lease.id, lease.epoch);
                        again(error);
                    }
                }
            });
        }
        let in_time = || Time::after(Duration::from_secs(60));
        let drained = queue.drain(in_time()).unwrap_or_else(|error| {
            again(error);
            queue.drain(in_time()).unwrap()
        });
        queue.close();
        assert!(drained, "{:?} at call {fault}", queue.counts());
    });
    let counts = queue.counts().unwrap_or_else(|error| {
        again(error);
        queue.counts().unwrap()
    });
    let left = (counts.ready, counts.leased, counts.delayed, counts.dead);
    assert_eq!(left, (0, 0, 0, 0), "at call {fault}");
    assert_eq!(counts.done, items as u64, "at call {fault}");
    assert!(done.lock().unwrap().is_superset(&put), "at call {fault}");
    assert!(told.load(Ordering::SeqCst) <= 1, "at call {fault}");
}

fn close_on_a_full_disk() {
    install();
    let folder = Folder::new();
    let open = || FileQueue::open(folder.file(), QueueOptions::default()).unwrap();
    let (queue, other) = (open(), open());
    for _ in 0..2 {
        queue.put(*b"item", PutOptions::default(), PAST).unwrap();
        assert!(queue.lease(PAST).unwrap().is_some());
    }
    IS_FULL.store(true, Ordering::SeqCst);
    drop(queue);
    assert_eq!(other.counts().unwrap().leased, 2);
    IS_FULL.store(false, Ordering::SeqCst);
    for _ in 0..2 {
        let lease = other.lease(Time::after(Duration::from_secs(60)));
        let lease = lease.unwrap().unwrap();
        other.ack(lease.id, lease.epoch).unwrap();
    }
    assert!(other.drain(PAST).unwrap());
}

fn fill_the_disk() {
    install();
    let folder = Folder::new();
    let queue = FileQueue::open(folder.file(), QueueOptions::default()).unwrap();
    let put = || queue.put(*b"item", PutOptions::default(), PAST);
    assert_eq!(put(), Ok(Some(1)));
    let lease = queue.lease(PAST).unwrap().unwrap();
    IS_FULL.store(true, Ordering::SeqCst);
    let before = queue.counts().unwrap();
    assert_eq!(put(), Err(FileError::NoSpace));
    assert_eq!(queue.ack(lease.id, lease.epoch), Err(FileError::NoSpace));
    assert_eq!(queue.counts().unwrap(), before, "reading needs no space");
    IS_FULL.store(false, Ordering::SeqCst);
    assert_eq!(put(), Ok(Some(2)));
    assert_eq!(queue.ack(lease.id, lease.epoch), Ok(()));
    assert_eq!(queue.counts().unwrap().done, 1);
}

fn lose_power() {
    install();
    let folder = Folder::new();
    RECORDING.store(true, Ordering::SeqCst);
    work(&folder.file());
    RECORDING.store(false, Ordering::SeqCst);
    let events = std::mem::take(&mut *EVENTS.lock().unwrap());
    let is_sync = |event: &&Event| matches!(event, Event::Sync(_));
    assert!(
        events.iter().filter(is_sync).count() > 10,
        "the layer is not in use"
    );
    // Many losses of power leave the same content on the disk.
    let mut states: BTreeMap<Files, BTreeSet<usize>> = BTreeMap::new();
    for end in 0..=events.len() {
        for luck in [Luck::None, Luck::All, Luck::Torn, Luck::Some(7)] {
            let state = after_power_loss(&events[..end], luck);
            states.entry(state).or_default().insert(end);
        }
    }
    let states = Mutex::new(states);
    let next = || states.lock().unwrap().pop_first();
    thread::scope(|threads| {
        // The close of a file mostly waits.
        for _ in 0..4 {
            threads.spawn(|| {
                while let Some((files, ends)) = next() {
                    check(&events, &ends, &files);
                }
            });
        }
    });
}

/// Make a queue, put, lease, ack, close, and repeat: the file is made, and its WAL is begun, written
/// back, deleted and begun anew.
fn work(path: &Path) {
    for round in 0..2 {
        let queue = FileQueue::open(path, QueueOptions::default()).unwrap();
        for number in 0..3 {
            let item: Bytes = vec![number; 200 + 5000 * usize::from(number)].into();
            let id = queue
                .put(item, PutOptions::default(), PAST)
                .unwrap()
                .unwrap();
            record(Event::Put(id));
        }
        for _ in 0..2 - round {
            let lease = queue.lease(PAST).unwrap().unwrap();
            record(Event::Acking(lease.id));
            queue.ack(lease.id, lease.epoch).unwrap();
        }
    }
}

/// The unsynced writes that are on the disk.
#[derive(Debug, Clone, Copy)]
enum Luck {
    None,
    All,
    /// All but the second half of the last one.
    Torn,
    /// A random choice.
    Some(usize),
}

type Files = BTreeMap<String, Vec<u8>>;

fn after_power_loss(events: &[Event], luck: Luck) -> Files {
    let mut files = Files::new();
    for (number, event) in events.iter().enumerate() {
        let (Event::Write(name, ..) | Event::Truncate(name, _) | Event::Delete(name)) = event
        else {
            continue;
        };
        let later = &events[number..];
        // A later file of the same name is another one, made after this one was deleted.
        let is_gone = matches!(event, Event::Delete(_));
        let is_synced = later[1..].iter().any(|later| match later {
            Event::Sync(synced) => synced == name || is_gone,
            Event::Write(other, ..) => other == name && is_gone,
            _ => false,
        });
        let is_last = !later[1..]
            .iter()
            .any(|later| matches!(later, Event::Write(..)));
        let is_there = is_synced
            || match luck {
                Luck::None => false,
                Luck::All | Luck::Torn => true,
                Luck::Some(lot) => number * lot % 3 == 0,
            };
        if !is_there {
            continue;
        }
        match event {
            Event::Write(name, at, data) => {
                let torn = is_last && !is_synced && matches!(luck, Luck::Torn);
                let data = if torn { &data[..data.len() / 2] } else { data };
                let file = files.entry(name.clone()).or_default();
                file.resize(file.len().max(at + data.len()), 0);
                file[*at..at + data.len()].copy_from_slice(data);
            }
            Event::Truncate(name, size) => files.entry(name.clone()).or_default().resize(*size, 0),
            Event::Delete(name) => _ = files.remove(name),
            _ => {}
        }
    }
    files
}

/// Check that the file opens and has all unacknowledged items, after these numbers of events.
fn check(events: &[Event], ends: &BTreeSet<usize>, files: &Files) {
    let folder = Folder::new();
    for (name, content) in files {
        fs::write(folder.file().with_file_name(name), content).unwrap();
    }
    let queue = FileQueue::open(folder.file(), QueueOptions::default());
    let queue = queue.unwrap_or_else(|error| panic!("{error}, after {ends:?} events"));
    for end in ends {
        let (mut put, mut acking) = (BTreeSet::new(), BTreeSet::new());
        for event in &events[..*end] {
            match event {
                Event::Put(id) => _ = put.insert(*id),
                Event::Acking(id) => _ = acking.insert(*id),
                _ => {}
            }
        }
        for id in put.difference(&acking) {
            let item = queue.item(*id).unwrap();
            assert!(item.is_some(), "{id} is lost, after {end} events");
        }
    }
    // The counts match the items, and all can be leased.
    let counts = queue.counts().unwrap();
    assert_eq!((counts.leased, counts.dead), (0, 0));
    for _ in 0..counts.ready {
        let lease = queue.lease(PAST).unwrap().unwrap();
        queue.ack(lease.id, lease.epoch).unwrap();
    }
    assert!(queue.drain(PAST).unwrap());
}
