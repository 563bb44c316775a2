//! What is kept between the three functions.

use super::*;
use crate::layer::{Saved, SavedTensor, WeightContext, storage_id};
use candle_core::CpuStorage;
use candle_core::backend::BackendStorage;

fn assert_own_storage(tensor: &Tensor) {
    assert!(tensor.is_contiguous());
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { panic!("on the CPU") };
    let length = match storage {
        CpuStorage::F32(values) => values.len(),
        CpuStorage::BF16(values) => values.len(),
        other => panic!("{:?} is not kept", other.dtype()),
    };
    assert_eq!((layout.start_offset(), length), (0, tensor.elem_count()));
}

/// A copy in fresh storage, by way of the host's bytes.
fn copied(tensor: &Tensor) -> Tensor {
    let host = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    Tensor::from_vec(host, tensor.dims(), &Device::Cpu).unwrap().to_dtype(tensor.dtype()).unwrap()
}

#[test]
fn what_is_kept_fills_storage_of_its_own_and_may_be_replaced_by_copies() {
    for (family, dtype) in FAMILIES.into_iter().flat_map(|family| [(family, DType::F32), (family, DType::BF16)]) {
        let model = tiny(family);
        let batch = microbatch(&model, 2, 12);
        for (index, layer) in small_layers(&model, dtype, 4).into_iter().enumerate() {
            let x = random(1, &[2, 12, model.hidden], 1.0, dtype);
            let (output, saved) = layer.forward(&x, &batch).unwrap();
            let dy = random(2, output.dims(), 1.0, output.dtype());
            let parameters: Vec<_> = layer.parameters().into_iter().map(storage_id).collect();
            for kept in &saved.0 {
                assert_own_storage(&kept.tensor);
                assert!(!parameters.contains(&storage_id(&kept.tensor)));
            }
            let replaced = Saved(
                saved.0.iter().map(|kept| SavedTensor { tensor: copied(&kept.tensor), ..kept.clone() }).collect(),
            );
            let (dx, context) = layer.backward_input(saved, &dy, &batch).unwrap();
            let (dx_again, context_again) = layer.backward_input(replaced, &dy, &batch).unwrap();
            assert_eq!(dx.map(|x| copied(&x).to_string()), dx_again.map(|x| copied(&x).to_string()));
            for kept in &context.0 {
                assert_own_storage(kept);
                assert!(!parameters.contains(&storage_id(kept)));
            }
            let context_again = WeightContext(context_again.0.iter().map(copied).collect());
            let gradients = layer.backward_weight(context, &batch).unwrap();
            let again = layer.backward_weight(context_again, &batch).unwrap();
            for (gradient, again) in gradients.iter().zip(&again) {
                let same = (gradient - again).unwrap().to_dtype(DType::F32).unwrap().abs().unwrap().max_all().unwrap();
                assert_eq!(same.to_scalar::<f32>().unwrap(), 0.0, "{family:?} layer {index}");
            }
        }
    }
}

#[test]
fn bytes_are_those_of_the_documented_tensors() {
    let (size, sequence) = (2, 12);
    let rows = size * sequence;
    for family in FAMILIES {
        let model = tiny(family);
        let batch = microbatch(&model, size, sequence);
        let [embedding, block, head] = small_layers(&model, DType::F32, 4);
        let bytes = |numbers: usize| (numbers * 4) as u64;
        let (hidden, query, kv) = (model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim);
        let x = random(1, &[size, sequence, hidden], 1.0, DType::F32);

        let (output, saved) = embedding.forward(&x, &batch).unwrap();
        assert_eq!((saved.bytes(), saved.offloadable_bytes()), (0, 0));
        let (_, context) = embedding.backward_input(saved, &output, &batch).unwrap();
        assert_eq!(context.bytes(), bytes(rows * hidden));

        let gated = model.mlp == MlpKind::GatedSilu;
        let inner = model.intermediate * if gated { 2 } else { 1 };
        let statistics = if model.norm == NormKind::Layer { 2 } else { 1 };
        let head_statistics = if model.qk_norm { model.heads + model.kv_heads } else { 0 };
        let norm_gradients = 2 * statistics * hidden + if model.qk_norm { 2 * model.head_dim } else { 0 };
        let (output, saved) = block.forward(&x, &batch).unwrap();
        let large = 2 * hidden + 2 * query + 2 * kv + inner;
        assert_eq!(saved.offloadable_bytes(), bytes(rows * large), "{family:?}");
        assert_eq!(saved.bytes(), bytes(rows * (large + 2 * statistics + model.heads + head_statistics)));
        let (_, context) = block.backward_input(saved, &output, &batch).unwrap();
        let expected = rows * (4 * hidden + 2 * query + 2 * kv + inner + 2 * statistics) + norm_gradients;
        assert_eq!(context.bytes(), bytes(expected), "{family:?}");

        let (loss, saved) = head.forward(&x, &batch).unwrap();
        assert_eq!(saved.offloadable_bytes(), bytes(rows * hidden));
        let large = rows * (hidden + statistics + 1);
        assert_eq!(saved.bytes(), bytes(large));
        let (_, context) = head.backward_input(saved, &loss, &batch).unwrap();
        assert_eq!(context.bytes(), bytes(large + 1 + statistics * hidden));
    }
}

#[test]
fn shared_storage_counts_once() {
    let x = random(1, &[3, 4], 1.0, DType::F32);
    let saved = Saved(vec![
        SavedTensor::offloadable(x.clone()),
        SavedTensor::resident(x.reshape((4, 3)).unwrap()),
        SavedTensor::offloadable(copied(&x)),
    ]);
    assert_eq!((saved.bytes(), saved.offloadable_bytes()), (96, 96));
}

#[test]
fn tensors_of_another_layer_are_refused() {
    let model = tiny(Family::Llama);
    let batch = microbatch(&model, 1, 4);
    let [_, block, head] = small_layers(&model, DType::F32, 4);
    let x = random(1, &[1, 4, model.hidden], 1.0, DType::F32);
    let (loss, saved) = head.forward(&x, &batch).unwrap();
    assert!(block.backward_input(saved, &x, &batch).is_err());
    let (_, saved) = block.forward(&x, &batch).unwrap();
    assert!(head.backward_input(saved, &loss, &batch).is_err());
}
