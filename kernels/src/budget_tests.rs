#![allow(clippy::unwrap_used)]
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;

use super::*;

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn bytes_are_counted_and_come_back() {
    let budget = Budget::new(3, Some(100));
    let fixed = budget.reserve_fixed(20).unwrap();
    let mut a = budget.reserve(0, 50).unwrap();
    assert_eq!((budget.held(), budget.peak(), budget.next_ticket()), (70, 70, 1));
    let part = a.split(30);
    assert_eq!((a.bytes(), part.bytes(), budget.held()), (20, 30, 70));
    drop(part);
    assert_eq!(budget.held(), 40);
    let again = budget.reserve(1, 30).unwrap();
    a.merge(again).unwrap();
    assert_eq!((a.bytes(), budget.held()), (50, 70));
    a.shrink_to(10);
    a.shrink_to(90);
    assert_eq!((a.bytes(), budget.held()), (10, 30));
    budget.reset_peak();
    assert_eq!(budget.peak(), 30);
    drop((a, fixed));
    assert_eq!(budget.held(), 0);
}

#[test]
fn reservations_of_two_budgets_do_not_join() {
    let (one, two) = (Budget::new(0, None), Budget::new(1, None));
    assert_eq!(one.capacity(), None);
    let mut a = one.reserve(0, 5).unwrap();
    let b = two.reserve(0, 7).unwrap();
    let b = a.merge(b).unwrap_err();
    let c = a.merge(one.reserve_fixed(1).unwrap()).unwrap_err();
    assert_eq!((a.bytes(), b.bytes(), c.bytes()), (5, 7, 1));
}

#[test]
fn a_reservation_that_takes_its_own_bytes_is_not_seen_waiting() {
    let budget = Budget::new(0, Some(100));
    let (sender, turns) = mpsc::sync_channel(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for ticket in 0..20_000 {
                sender.send(ticket).unwrap();
                drop(budget.reserve(ticket, 100).unwrap());
            }
            drop(sender);
        });
        for ticket in turns {
            assert!(!budget.must_wait(ticket, 100), "ticket {ticket}");
            // Those behind it wait for their turn, if for nothing else.
            assert!(budget.must_wait(ticket + 2, 0), "ticket {ticket}");
        }
    });
}

#[test]
fn what_can_never_fit_fails_at_once_and_says_where() {
    let budget = Budget::new(2, Some(100));
    let _fixed = budget.reserve_fixed(40).unwrap();
    let error = budget.reserve(0, 61).unwrap_err();
    assert_eq!(error, BudgetError::Exceeded { device: 2, asked: 61, held: 40, fixed: 40, capacity: 100 });
    let text = error.to_string();
    assert!(["device 2", "61", "40", "100"].iter().all(|part| text.contains(part)), "{text}");
    assert!(matches!(budget.reserve(0, u64::MAX).unwrap_err(), BudgetError::Exceeded { .. }));
    let _a = budget.reserve(0, 60).unwrap();
    assert!(matches!(budget.reserve_fixed(1).unwrap_err(), BudgetError::Exceeded { held: 100, .. }));
}

#[test]
fn without_any_release_waiting_ends() {
    let budget = Budget::with_patience(0, Some(100), SHORT);
    let _a = budget.reserve(0, 60).unwrap();
    let error = budget.reserve(1, 60).unwrap_err();
    assert!(
        matches!(error, BudgetError::Stalled { ticket: 1, next: 1, asked: 60, held: 60, capacity: 100, .. }),
        "{error}"
    );
    // Out of turn: its bytes would fit.
    assert!(matches!(budget.reserve(7, 1).unwrap_err(), BudgetError::Stalled { ticket: 7, next: 1, .. }));
    assert!(matches!(budget.reserve(0, 1).unwrap_err(), BudgetError::TicketPassed { ticket: 0, next: 1, .. }));
}

#[test]
fn abort_wakes_whoever_waits() {
    let budget = Budget::new(0, Some(10));
    let _all = budget.reserve(0, 10).unwrap();
    let waiting: Vec<_> = (1..3)
        .map(|ticket| {
            let budget = budget.clone();
            thread::spawn(move || budget.reserve(ticket, 5).unwrap_err())
        })
        .collect();
    budget.abort("stage 1 failed");
    budget.abort("a later reason");
    for thread in waiting {
        assert_eq!(thread.join().unwrap(), BudgetError::Aborted { device: 0, reason: "stage 1 failed".to_owned() });
    }
    assert!(matches!(budget.reserve_fixed(0).unwrap_err(), BudgetError::Aborted { .. }));
}

#[test]
fn a_later_small_allocation_waits_for_an_earlier_large_one() {
    let budget = Budget::new(0, Some(100));
    let first = budget.reserve(0, 80).unwrap();
    let (granted, order) = mpsc::channel();
    let threads: Vec<_> = [(2, 10), (1, 90)]
        .into_iter()
        .map(|(ticket, bytes)| {
            let (budget, granted) = (budget.clone(), granted.clone());
            thread::spawn(move || {
                let held = budget.reserve(ticket, bytes).unwrap();
                granted.send(ticket).unwrap();
                held
            })
        })
        .collect();
    assert!(order.recv_timeout(SHORT).is_err(), "ticket 2 fits, but is not in turn");
    drop(first);
    let held: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert_eq!((held.iter().map(Reservation::bytes).sum::<u64>(), budget.held()), (100, 100));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Threads that take their tickets in any order and hold at most one reservation each get them
    /// in ticket order, never more than fits, and everything comes back.
    #[test]
    fn tickets_are_served_in_order_within_the_capacity(
        sizes in proptest::collection::vec(0u64..=50, 1..40),
        owners in proptest::collection::vec(0usize..4, 40),
        fixed in 0u64..30,
    ) {
        let budget = Budget::new(0, Some(80));
        let base = budget.reserve_fixed(fixed).unwrap();
        let log = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for owner in 0..4 {
                let (budget, sizes, owners, log) = (&budget, &sizes, &owners, &log);
                scope.spawn(move || {
                    for ticket in (0..sizes.len()).filter(|&t| owners[t] == owner) {
                        let mut held = budget.reserve(ticket as u64, sizes[ticket]).unwrap();
                        log.lock().unwrap().push((ticket, budget.held()));
                        let rest = held.split(sizes[ticket] / 2);
                        drop(held);
                        thread::yield_now();
                        drop(rest);
                    }
                });
            }
        });
        let log = log.into_inner().unwrap();
        prop_assert_eq!(log.len(), sizes.len());
        prop_assert!(log.iter().all(|&(_, held)| held <= 80));
        prop_assert!(budget.peak() <= 80);
        prop_assert!(budget.peak() >= fixed + sizes.iter().max().copied().unwrap_or(0));
        prop_assert_eq!(budget.next_ticket(), sizes.len() as u64);
        prop_assert_eq!(budget.held(), fixed);
        drop(base);
        prop_assert_eq!(budget.held(), 0);
    }
}
