//! The three functions against candle's autograd and against finite differences.

use super::*;
use candle_core::Var;
use proptest::prelude::*;

/// Output and gradients of the reference, which sees the layer's parameters as variables.
fn by_autograd(
    layer: &dyn Layer,
    input: &Tensor,
    gradient: &Tensor,
    reference: impl Fn(&reference::Parameters, &Tensor) -> Result<Tensor>,
) -> (Tensor, Option<Tensor>, Vec<Tensor>) {
    let variables: Vec<Var> = layer.parameters().into_iter().map(|p| Var::from_tensor(p).unwrap()).collect();
    let parameters = layer.parameter_names().into_iter().zip(variables.iter().map(|v| v.as_tensor().clone())).collect();
    let input = Var::from_tensor(input).unwrap();
    let output = reference(&parameters, &input).unwrap();
    let gradients = (&output * gradient).unwrap().sum_all().unwrap().backward().unwrap();
    let by_parameters = variables.iter().map(|v| gradients.get(v).unwrap().clone()).collect();
    (output.detach(), gradients.get(&input).cloned(), by_parameters)
}

fn compare(
    layer: &dyn Layer,
    got: (Tensor, Option<Tensor>, Vec<Tensor>),
    expected: (Tensor, Option<Tensor>, Vec<Tensor>),
) -> std::result::Result<(), TestCaseError> {
    let check = |name: &str, got: &Tensor, expected: &Tensor| {
        let error = relative_error(got, expected);
        prop_assert!(error <= 1e-4, "{name}: relative error {error}");
        Ok(())
    };
    check("output", &got.0, &expected.0)?;
    prop_assert_eq!(got.1.is_some(), expected.1.is_some());
    if let (Some(got), Some(expected)) = (&got.1, &expected.1) {
        check("input", got, expected)?;
    }
    prop_assert_eq!(got.2.len(), expected.2.len());
    for ((name, got), expected) in layer.parameter_names().iter().zip(&got.2).zip(&expected.2) {
        check(name, got, expected)?;
    }
    Ok(())
}

/// All three layers of a model against the reference.
fn agrees(model: &Model, size: usize, sequence: usize, query_block: usize) -> std::result::Result<(), TestCaseError> {
    let [embedding, block, head] = small_layers(model, DType::F32, query_block);
    let batch = microbatch(model, size, sequence);
    let shape = [size, sequence, model.hidden];
    let (x, dy) = (random(1, &shape, 1.0, DType::F32), random(2, &shape, 1.0, DType::F32));
    let none = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();

    let expected = by_autograd(&*embedding, &none, &dy, |p, _| reference::embedding(p, &batch.tokens));
    compare(&*embedding, run(&*embedding, &none, &dy, &batch), expected)?;
    let expected = by_autograd(&*block, &x, &dy, |p, x| reference::block(model, p, x));
    compare(&*block, run(&*block, &x, &dy, &batch), expected)?;
    let dloss = Tensor::new(0.7f32, &Device::Cpu).unwrap();
    let expected = by_autograd(&*head, &x, &dloss, |p, x| reference::head(model, p, x, &batch.targets));
    compare(&*head, run(&*head, &x, &dloss, &batch), expected)
}

#[test]
fn every_family_agrees_with_autograd() {
    for family in FAMILIES {
        // Blocks of queries that divide the sequence and that do not, and one that holds all of it.
        for query_block in [4, 5, 64] {
            agrees(&tiny(family), 2, 12, query_block).unwrap_or_else(|error| panic!("{family:?}: {error}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_autograd(
        family in prop::sample::select(FAMILIES.to_vec()),
        (size, sequence, query_block) in (1usize..4, 2usize..14, 1usize..9),
        (kv_heads, group, half) in (1usize..4, 1usize..4, 1usize..5),
        window in prop::option::of(1usize..8),
    ) {
        let mut model = tiny(family);
        model.kv_heads = kv_heads;
        model.heads = if family == Family::Gpt2 { kv_heads } else { kv_heads * group };
        model.head_dim = 2 * half;
        // A window of 1 leaves each query its own key: the queries' gradient is exactly zero then.
        model.sliding_window = window.filter(|_| family != Family::Gpt2).map(|window| window + 1);
        agrees(&model, size, sequence, query_block)?;
    }
}

/// The derivative of `objective` by each number of `x`, by central differences.
fn differences(x: &Tensor, objective: &mut dyn FnMut(&Tensor) -> f64) -> Tensor {
    let step = 1e-5;
    let values = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let mut derivatives = Vec::new();
    for index in 0..values.len() {
        let mut at = |offset: f64| {
            let mut moved = values.clone();
            moved[index] += offset;
            objective(&Tensor::from_vec(moved, x.dims(), &Device::Cpu).unwrap())
        };
        derivatives.push((at(step) - at(-step)) / (2.0 * step));
    }
    Tensor::from_vec(derivatives, x.dims(), &Device::Cpu).unwrap()
}

fn product(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
}

#[test]
fn finite_differences_agree() {
    for family in FAMILIES {
        let mut model = tiny(family);
        (model.hidden, model.head_dim, model.intermediate, model.vocabulary) = (8, 4, 6, 7);
        (model.heads, model.kv_heads) = if family == Family::Gpt2 { (2, 2) } else { (2, 1) };
        (model.max_positions, model.sliding_window) = (6, model.sliding_window.map(|_| 3));
        let batch = microbatch(&model, 2, 5);
        let shape = [2, 5, model.hidden];
        for (index, mut layer) in small_layers(&model, DType::F64, 2).into_iter().enumerate() {
            let x = random(1, &shape, 1.0, DType::F64);
            let dy = random(2, if index == 2 { &[] } else { &shape }, 1.0, DType::F64);
            let (_, dx, gradients) = run(&*layer, &x, &dy, &batch);
            let check = |name: &str, got: &Tensor, expected: &Tensor| {
                let error = relative_error(got, expected);
                assert!(error <= 1e-6, "{family:?} layer {index} {name}: relative error {error}");
            };
            if let Some(dx) = dx {
                let expected = differences(&x, &mut |x| product(&layer.forward(x, &batch).unwrap().0, &dy));
                check("input", &dx, &expected);
            }
            let names = layer.parameter_names();
            for (place, gradient) in gradients.iter().enumerate() {
                let parameter = layer.parameters()[place].clone();
                let expected = differences(&parameter, &mut |moved| {
                    *layer.parameter_slots()[place] = moved.clone();
                    product(&layer.forward(&x, &batch).unwrap().0, &dy)
                });
                *layer.parameter_slots()[place] = parameter;
                check(names[place], gradient, &expected);
            }
        }
    }
}

/// Losses and gradients of a chain of layers.
fn train(layers: &[Box<dyn Layer>], batch: &Microbatch) -> (Tensor, Vec<Vec<Tensor>>) {
    let mut x = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    let mut kept = Vec::new();
    for layer in layers {
        let (output, saved) = layer.forward(&x, batch).unwrap();
        kept.push(saved);
        x = output;
    }
    let mut gradient = Some(x.ones_like().unwrap());
    let mut gradients = Vec::new();
    for (layer, saved) in layers.iter().zip(kept).rev() {
        let (dx, context) = layer.backward_input(saved, &gradient.unwrap(), batch).unwrap();
        gradients.push(layer.backward_weight(context, batch).unwrap());
        gradient = dx;
    }
    gradients.reverse();
    (x, gradients)
}

#[test]
fn bf16_is_f32_but_for_its_precision() {
    for family in FAMILIES {
        let model = tiny(family);
        let batch = microbatch(&model, 2, 12);
        let (mut wide, mut narrow) = (build(&model, &options(DType::F32)).unwrap(), Vec::new());
        for (index, layer) in wide.iter_mut().enumerate() {
            scramble(&mut **layer, 50 + 10 * index as u64);
            let mut twin = build_layer(&model, index, &options(DType::BF16)).unwrap();
            let rounded: Vec<_> = layer.parameters().into_iter().map(|p| p.to_dtype(DType::BF16).unwrap()).collect();
            layer.set_parameters(rounded.iter().map(|p| p.to_dtype(DType::F32).unwrap()).collect());
            twin.set_parameters(rounded);
            narrow.push(twin);
        }
        let (expected, wide_gradients) = train(&wide, &batch);
        let (loss, narrow_gradients) = train(&narrow, &batch);
        assert_eq!(loss.dtype(), DType::F32);
        assert!(relative_error(&loss, &expected) < 0.02, "{family:?}: {loss} and {expected}");
        for ((layer, wide), narrow) in wide.iter().zip(wide_gradients).zip(narrow_gradients) {
            for ((name, wide), narrow) in layer.parameter_names().into_iter().zip(wide).zip(narrow) {
                assert_eq!(narrow.dtype(), DType::BF16);
                let error = relative_error(&narrow, &wide);
                assert!(error < 0.15, "{family:?} {name}: relative error {error}");
            }
        }
    }
}
