//! A server's token is the parent of its requests' tokens: a cancellation goes down, never up.

use std::thread;

use desist::{CancelSource, CancelToken, Time};

/// Serve until cancelled, and return the cause.
fn serve(name: &str, token: &CancelToken) -> String {
    // A thread that has work to do calls `token.check()?` in between instead.
    token
        .wait_until(Time::NEVER)
        .expect("this thread is in no scope of its own");
    let cause = token.cause().expect("cancelled");
    format!("{name}: {cause}")
}

pub(crate) fn main() {
    let server = CancelSource::new();
    let [first, second] = [server.token().child(), server.token().child()];
    let causes = thread::scope(|threads| {
        let (one, two) = (first.token(), second.token());
        let workers = [
            threads.spawn(move || serve("first", &one)),
            threads.spawn(move || serve("second", &two)),
        ];
        first.cancel_because("the client hung up");
        server.cancel_because("shutting down");
        workers.map(|worker| worker.join().expect("a worker panicked"))
    });
    for line in &causes {
        println!("{line}");
    }
    assert!(causes[0].ends_with("the client hung up"));
    assert!(causes[1].ends_with("shutting down"));
}
