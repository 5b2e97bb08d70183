//! A worker that selects over channels of `crossbeam-channel` until it is cancelled.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use desist::channel::{RecvError, recv, send};
use desist::{CancelSource, CancelToken, Time, move_on_after};

/// Add up numbers and print texts, whichever come, until the token is cancelled.
fn serve(token: &CancelToken, numbers: &Receiver<u32>, texts: &Receiver<&str>, sums: &Sender<u32>) {
    let cancelled = token.receiver(); // disconnects when the token is cancelled
    let mut sum = 0;
    loop {
        select! {
            recv(numbers) -> number => {
                let Ok(number) = number else { return };
                sum += number;
                sums.send(sum).expect("main listens");
            }
            recv(texts) -> text => println!("got {:?}", text),
            recv(cancelled) -> _ => break,
        }
    }
    println!("stopped: {}", token.cause().expect("it is cancelled"));
}

pub(crate) fn main() {
    let server = CancelSource::new();
    let (number, numbers) = unbounded();
    let (_text, texts) = unbounded();
    let (sum, sums) = bounded(1);
    let token = server.token();
    let worker = thread::spawn(move || serve(&token, &numbers, &texts, &sum));

    // `recv` and `send` wait at one channel, and end with the scope they are in.
    send(&number, 2, Time::NEVER).expect("the worker receives");
    send(&number, 3, Time::NEVER).expect("the worker receives");
    assert_eq!(recv(&sums, Time::NEVER), Ok(2));
    assert_eq!(recv(&sums, Time::NEVER), Ok(5));
    let late = move_on_after(Duration::from_millis(5), |_| recv(&sums, Time::NEVER));
    assert_eq!(late, Ok::<_, RecvError>(None)); // no third sum came in time

    server.cancel_because("the day is over");
    worker.join().expect("the worker does not panic");
}
