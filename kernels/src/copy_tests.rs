#![allow(clippy::unwrap_used)]
use std::sync::Mutex;

use candle_core::Device;

use super::*;
use crate::backend::{BackendKind, open};
use crate::budget::Budget;

fn backend() -> Arc<dyn Backend> {
    open(BackendKind::Cpu, 2).unwrap()
}

fn tensor(n: usize) -> Tensor {
    Tensor::arange(0u32, n as u32, &Device::Cpu).unwrap()
}

#[test]
fn tensors_go_to_the_host_and_come_back() {
    let engine = CopyEngine::new(&backend(), &[0, 2]).unwrap();
    let original = tensor(5000);
    let expected = original.to_vec1::<u32>().unwrap();
    let out = engine.offload(0, move || Ok(vec![original, tensor(7)])).unwrap();
    let reload = engine.reload(2, 1, move || Ok(out.wait()?.value)).unwrap().wait().unwrap();
    assert!(reload.start <= reload.end);
    assert_eq!(reload.value[0].to_vec1::<u32>().unwrap(), expected);
    assert_eq!(reload.value[1].to_vec1::<u32>().unwrap(), (0..7).collect::<Vec<u32>>());
}

#[test]
fn a_channel_copies_in_the_order_submitted_and_one_at_a_time() {
    let engine = CopyEngine::new(&backend(), &[4, 4, 5]).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (go, wait) = mpsc::channel::<()>();
    let mut wait = Some(wait);
    let pending: Vec<_> = (0..6)
        .map(|i| {
            let order = Arc::clone(&order);
            let gate = if i == 0 { wait.take() } else { None };
            let prepare = move || {
                // The first copy's input comes last: the others must not pass it.
                if let Some(gate) = gate {
                    gate.recv().unwrap();
                }
                Ok(tensor(1000))
            };
            let copy = move |t: Tensor, backend: &dyn Backend| {
                let host = backend.offload(&t)?;
                order.lock().unwrap().push(i);
                Ok(host)
            };
            engine.submit(4, prepare, copy).unwrap()
        })
        .collect();
    // Another channel is free meanwhile.
    engine.offload(5, || Ok(vec![tensor(3)])).unwrap().wait().unwrap();
    assert!(order.lock().unwrap().is_empty());
    go.send(()).unwrap();
    let copied: Vec<_> = pending.into_iter().map(|p| p.wait().unwrap()).collect();
    assert_eq!(*order.lock().unwrap(), (0..6).collect::<Vec<_>>());
    assert!(copied.windows(2).all(|w| w[0].end <= w[1].start));
}

#[test]
fn errors_and_panics_reach_whoever_waits_and_spare_the_rest() {
    let engine = CopyEngine::new(&backend(), &[0]).unwrap();
    assert!(matches!(engine.offload(1, || Ok(Vec::new())).unwrap_err(), CopyError::NoChannel(1)));
    let aborted = engine.offload(0, || Err(CopyError::Aborted("no forward".to_owned()))).unwrap();
    let panicked = engine.submit(0, || Ok(()), |(), _| -> Result<(), CopyError> { panic!("on purpose") }).unwrap();
    let full = Budget::new(0, Some(10));
    let reload = engine.submit(0, move || Ok(full.reserve(0, 11)?), |held, _| Ok(held)).unwrap();
    let fine = engine.offload(0, || Ok(vec![tensor(3)])).unwrap();
    assert_eq!(aborted.wait().unwrap_err().to_string(), "given up: no forward");
    assert!(panicked.wait().unwrap_err().to_string().contains("on purpose"));
    assert!(matches!(reload.wait().unwrap_err(), CopyError::Budget(BudgetError::Exceeded { asked: 11, .. })));
    assert_eq!(fine.wait().unwrap().value[0].bytes(), 12);
}

#[test]
fn waiting_can_end_before_the_copy() {
    let engine = CopyEngine::new(&backend(), &[0]).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let prepare = move || {
        wait.recv().unwrap();
        Ok(vec![tensor(9)])
    };
    let pending = engine.offload(0, prepare).unwrap().wait_timeout(Duration::ZERO).unwrap_err();
    go.send(()).unwrap();
    assert_eq!(pending.wait().unwrap().value.len(), 1);
}

#[test]
fn an_offload_frees_the_device_memory_for_the_next_forward() {
    let engine = CopyEngine::new(&backend(), &[0]).unwrap();
    let budget = Budget::new(0, Some(4000));
    let held = budget.reserve(0, 4000).unwrap();
    let saved = tensor(1000);
    let offload = engine
        .submit(
            0,
            move || Ok((vec![saved], held)),
            |(tensors, held), backend| {
                let host = tensors.iter().map(|t| backend.offload(t)).collect::<Result<Vec<_>, _>>()?;
                drop((tensors, held));
                Ok(host)
            },
        )
        .unwrap();
    // Blocks until the copy is done.
    let next = budget.reserve(1, 4000).unwrap();
    assert_eq!(budget.peak(), 4000);
    drop(next);
    assert_eq!(offload.wait().unwrap().value[0].bytes(), 4000);
}
