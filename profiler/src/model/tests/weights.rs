//! The parameters that a model is built with.

use super::*;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_layer_built_alone_is_the_model_s() {
    for family in FAMILIES {
        let model = tiny(family);
        let whole = build(&model, &options(DType::F32)).unwrap();
        assert_eq!(whole.len(), model.layers + 2);
        for (index, layer) in whole.iter().enumerate() {
            let alone = build_layer(&model, index, &options(DType::F32)).unwrap();
            for (one, other) in layer.parameters().into_iter().zip(alone.parameters()) {
                assert_eq!(values(one), values(other));
            }
        }
        let other = build(&model, &BuildOptions { seed: 8, ..options(DType::F32) }).unwrap();
        let matrices = |layer: &dyn Layer| -> Vec<Vec<f32>> {
            layer.parameters().into_iter().filter(|p| p.rank() == 2).map(values).collect()
        };
        // By seed, by layer and by place (query and output projection of one shape in some of the families).
        let ours = matrices(&*whole[1]);
        for (index, matrix) in ours.iter().enumerate() {
            assert_ne!(matrix, &matrices(&*other[1])[index]);
            assert_ne!(matrix, &matrices(&*whole[2])[index]);
            assert!(ours[..index].iter().all(|other| other[..9] != matrix[..9]));
        }
    }
}

#[test]
fn parameters_are_as_many_as_the_model_says() {
    for family in FAMILIES {
        let model = tiny(family);
        let layers = build(&model, &options(DType::F32)).unwrap();
        let mut count = 0;
        for layer in &layers {
            let names = layer.parameter_names();
            assert_eq!(names.len(), layer.parameters().len());
            assert_eq!(names.len(), names.iter().collect::<std::collections::HashSet<_>>().len(), "{names:?}");
            count += layer.parameters().iter().map(|p| p.elem_count() as u64).sum::<u64>();
        }
        if model.tied_embeddings {
            let (embedding, head) = (&layers[0], &layers[model.layers + 1]);
            let matrix = embedding.parameters()[embedding.tied_parameter().unwrap()];
            assert_eq!(values(matrix), values(head.parameters()[head.tied_parameter().unwrap()]));
            count -= matrix.elem_count() as u64;
        } else {
            assert!(layers.iter().all(|layer| layer.tied_parameter().is_none()));
        }
        assert_eq!(count, model.parameters(), "{family:?}");
    }
}

#[test]
fn weights_start_normal() {
    let mut model = tiny(Family::Llama);
    model.vocabulary = 2000;
    let embedding = build_layer(&model, 0, &options(DType::F32)).unwrap();
    let mut values = values(embedding.parameters()[0]);
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    values.sort_by(f32::total_cmp);
    let quantile = |part: f64| values[(part * values.len() as f64) as usize] / DEVIATION as f32;
    assert!(mean.abs() < 5e-4, "{mean}");
    // Quantiles of the normal distribution.
    for (part, expected) in [(0.158_655, -1.0), (0.5, 0.0), (0.841_345, 1.0), (0.977_25, 2.0)] {
        assert!((quantile(part) - expected).abs() < 0.04, "{part}: {}", quantile(part));
    }
}

#[test]
fn what_cannot_be_built_is_refused() {
    let refused = |change: &dyn Fn(&mut Model), index| {
        let mut model = tiny(Family::Llama);
        change(&mut model);
        build_layer(&model, index, &options(DType::F32)).err().map(|error| error.to_string())
    };
    assert!(refused(&|_| (), 4).unwrap().contains("layers 0 to 3"));
    assert!(refused(&|model| model.kv_heads = 3, 1).unwrap().contains("4 query heads"));
    assert!(refused(&|model| model.head_dim = 5, 1).unwrap().contains("even"));
    assert_eq!(refused(&|_| (), 3), None);
}

#[test]
fn a_sequence_beyond_the_learned_positions_is_an_error() {
    let model = tiny(Family::Gpt2);
    let [embedding, _, _] = small_layers(&model, DType::F32, 4);
    let none = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    let error = embedding.forward(&none, &microbatch(&model, 1, 17)).unwrap_err().to_string();
    assert!(error.contains("17") && error.contains("16"), "{error}");
}

#[test]
fn any_number_of_threads_draws_the_same_numbers() {
    for count in [0, 1, 2, 77, (1 << 16) + 1, 200_001, 400_000] {
        let expected = normal_numbers(5, count, 1).unwrap();
        assert_eq!(expected.len(), count);
        for threads in [0, 2, 3, 8] {
            assert!(normal_numbers(5, count, threads).unwrap() == expected, "{count} by {threads}");
        }
    }
}
