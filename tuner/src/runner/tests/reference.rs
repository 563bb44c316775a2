//! The same training without a pipeline: one loop over microbatches and layers.

use candle_core::{Device, Tensor};
use optpipe_configs::job::Optimizer;
use optpipe_configs::model::Model;
use optpipe_profiler::layer::Layer;
use optpipe_profiler::model::{BuildOptions, build};

use super::super::data;
use super::fixture::SHAPE;

pub(super) struct Reference {
    layers: Vec<Box<dyn Layer>>,
    model: Model,
    seed: u64,
    optimizer: Optimizer,
    moments: Vec<Vec<[Vec<f64>; 2]>>,
    step: u64,
}

/// A step's mean loss and, by layer and parameter, the gradients.
pub(super) struct ReferenceStep {
    pub(super) loss: f64,
    pub(super) gradients: Vec<Vec<Vec<f64>>>,
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

impl Reference {
    pub(super) fn new(model: &Model, seed: u64, optimizer: Optimizer) -> Reference {
        let layers = build(model, &BuildOptions { seed, ..BuildOptions::default() }).unwrap();
        let zeros = |x: &Tensor| [vec![0.0; x.elem_count()], vec![0.0; x.elem_count()]];
        let moments = layers.iter().map(|layer| layer.parameters().into_iter().map(zeros).collect()).collect();
        Reference { layers, model: model.clone(), seed, optimizer, moments, step: 0 }
    }

    pub(super) fn step(&mut self, microbatches: usize) -> ReferenceStep {
        let cpu = Device::Cpu;
        let mut gradients: Vec<Vec<Vec<f64>>> = self
            .layers
            .iter()
            .map(|layer| layer.parameters().iter().map(|x| vec![0.0; x.elem_count()]).collect())
            .collect();
        let mut total = 0.0;
        for j in 0..microbatches {
            let microbatch = data::microbatch(self.seed, self.step, j, SHAPE, self.model.vocabulary, &cpu).unwrap();
            let mut x = Tensor::new(0f32, &cpu).unwrap();
            let mut kept = Vec::new();
            for layer in &self.layers {
                let (output, saved) = layer.forward(&x, &microbatch).unwrap();
                kept.push(saved);
                x = output;
            }
            total += f64::from(x.to_scalar::<f32>().unwrap());
            let mut gradient = Tensor::new(1f32, &cpu).unwrap();
            for (i, layer) in self.layers.iter().enumerate().rev() {
                let (by_input, context) = layer.backward_input(kept.pop().unwrap(), &gradient, &microbatch).unwrap();
                for (sum, part) in gradients[i].iter_mut().zip(layer.backward_weight(context, &microbatch).unwrap()) {
                    sum.iter_mut().zip(numbers(&part)).for_each(|(s, x)| *s += x / microbatches as f64);
                }
                gradient = by_input.unwrap_or(gradient);
            }
        }
        let ends: Vec<(usize, usize)> =
            self.layers.iter().enumerate().filter_map(|(i, l)| Some((i, l.tied_parameter()?))).collect();
        if let [(a, of), (b, to)] = ends[..] {
            let sum: Vec<f64> = gradients[a][of].iter().zip(&gradients[b][to]).map(|(x, y)| x + y).collect();
            gradients[a][of].clone_from(&sum);
            gradients[b][to] = sum;
        }
        self.step += 1;
        ReferenceStep { loss: total / microbatches as f64, gradients }
    }

    /// As in the papers, in f64.
    pub(super) fn optimize(&mut self, step: &ReferenceStep, learning_rate: f64) {
        let t = i32::try_from(self.step).unwrap();
        for (layer, (moments, gradients)) in self.layers.iter_mut().zip(self.moments.iter_mut().zip(&step.gradients)) {
            let mut updated = Vec::new();
            for (parameter, ([first, second], gradient)) in
                layer.parameters().into_iter().zip(moments.iter_mut().zip(gradients))
            {
                let decay = if parameter.rank() > 1 { 0.1 } else { 0.0 };
                let mut weights = numbers(parameter);
                for (i, w) in weights.iter_mut().enumerate() {
                    let g = gradient[i];
                    match self.optimizer {
                        Optimizer::Sgd => *w -= learning_rate * g,
                        Optimizer::Adamw => {
                            first[i] = 0.9 * first[i] + 0.1 * g;
                            second[i] = 0.95 * second[i] + 0.05 * g * g;
                            let (m, v) = (first[i] / (1.0 - 0.9f64.powi(t)), second[i] / (1.0 - 0.95f64.powi(t)));
                            *w -= learning_rate * (m / (v.sqrt() + 1e-8) + decay * *w);
                        }
                    }
                }
                let narrow: Vec<f32> = weights.into_iter().map(|x| x as f32).collect();
                updated.push(Tensor::from_vec(narrow, parameter.shape(), &Device::Cpu).unwrap());
            }
            layer.set_parameters(updated);
        }
    }
}
