//! See [`super::super`] for what each function gives.

use super::super::Span;
use super::{DType, Real, Result, Tensor, Values, bail, by_type, indices, largest, sum, tensor, vectorized, zeros};

pub(in super::super) fn attend(scores: &Tensor, span: Span) -> Result<(Tensor, Tensor)> {
    fn of<T: Real>(scores: &Tensor, span: Span) -> Result<(Tensor, Tensor)> {
        let (heads, rows, keys) = scores.dims3()?;
        let values = Values::<T>::of(scores)?;
        let scores = values.slice()?;
        let (mut probabilities, mut log_sums) = (zeros::<T>(scores.len()), zeros::<T>(heads * rows));
        vectorized(|| {
            let rows_of = scores.chunks_exact(keys).zip(probabilities.chunks_exact_mut(keys));
            for (index, ((scores, probabilities), log_sum)) in rows_of.zip(&mut log_sums).enumerate() {
                let (first, end) = span.visible(index % rows, keys);
                let (scores, probabilities) = (&scores[first..end], &mut probabilities[first..end]);
                let top = largest(scores);
                for (probability, &score) in probabilities.iter_mut().zip(scores) {
                    *probability = (score - top).exp();
                }
                let total = sum(probabilities);
                let part = T::from_f64(1.0) / total;
                for probability in probabilities {
                    *probability *= part;
                }
                *log_sum = top + total.ln();
            }
        });
        Ok((tensor(probabilities, (heads, rows, keys))?, tensor(log_sums, (heads, rows))?))
    }
    by_type!(scores, of(scores, span))
}

pub(in super::super) fn attend_backward(
    scores: &Tensor,
    span: Span,
    log_sum: &Tensor,
    dprobabilities: &Tensor,
    mean: &Tensor,
) -> Result<(Tensor, Tensor)> {
    fn of<T: Real>(
        scores: &Tensor,
        span: Span,
        log_sum: &Tensor,
        gradient: &Tensor,
        mean: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let shape = scores.dims3()?;
        let (_, rows, keys) = shape;
        let (scores, gradient) = (Values::<T>::of(scores)?, Values::<T>::of(gradient)?);
        let (log_sum, mean) = (Values::<T>::of(log_sum)?, Values::<T>::of(mean)?);
        let (scores, gradient, log_sum, mean) = (scores.slice()?, gradient.slice()?, log_sum.slice()?, mean.slice()?);
        let (mut probabilities, mut dscores) = (zeros::<T>(scores.len()), zeros::<T>(scores.len()));
        vectorized(|| {
            let read = scores.chunks_exact(keys).zip(gradient.chunks_exact(keys));
            let write = probabilities.chunks_exact_mut(keys).zip(dscores.chunks_exact_mut(keys));
            let row = read.zip(write).zip(log_sum.iter().zip(mean));
            for (index, (((scores, gradient), (probabilities, dscores)), (&log_sum, &mean))) in row.enumerate() {
                let (first, end) = span.visible(index % rows, keys);
                let read = scores[first..end].iter().zip(&gradient[first..end]);
                let write = probabilities[first..end].iter_mut().zip(&mut dscores[first..end]);
                for ((&score, &gradient), (probability, dscore)) in read.zip(write) {
                    let p = (score - log_sum).exp();
                    *probability = p;
                    *dscore = p * (gradient - mean);
                }
            }
        });
        Ok((tensor(probabilities, shape)?, tensor(dscores, shape)?))
    }
    by_type!(scores, of(scores, span, log_sum, dprobabilities, mean))
}

pub(in super::super) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    fn of<T: Real>(x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        let values = Values::<T>::of(x)?;
        let x = values.slice()?;
        let mut log_sums = zeros::<T>(rows);
        vectorized(|| {
            for (x, log_sum) in x.chunks_exact(columns).zip(&mut log_sums) {
                let top = largest(x);
                *log_sum = top + super::sum_with(x, x, |x, _| (x - top).exp()).ln();
            }
        });
        tensor(log_sums, rows)
    }
    by_type!(x, of(x))
}

pub(in super::super) fn cross_entropy_backward(
    logits: &Tensor,
    log_sum: &Tensor,
    targets: &Tensor,
    first: usize,
    scale: &Tensor,
) -> Result<Tensor> {
    fn of<T: Real>(
        logits: &Tensor,
        log_sum: &Tensor,
        targets: &Tensor,
        first: usize,
        scale: &Tensor,
    ) -> Result<Tensor> {
        let (rows, columns) = logits.dims2()?;
        let (logits, log_sum) = (Values::<T>::of(logits)?, Values::<T>::of(log_sum)?);
        let (logits, log_sum, targets) = (logits.slice()?, log_sum.slice()?, indices(targets)?);
        let scale = scale.to_scalar::<T>()?;
        let mut gradient = zeros::<T>(logits.len());
        vectorized(|| {
            let row = logits.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns));
            for ((logits, gradient), (&log_sum, &target)) in row.zip(log_sum.iter().zip(&targets)) {
                for (gradient, &logit) in gradient.iter_mut().zip(logits) {
                    *gradient = (logit - log_sum).exp() * scale;
                }
                if let Some(hit) = target.checked_sub(first).and_then(|column| gradient.get_mut(column)) {
                    *hit -= scale;
                }
            }
        });
        tensor(gradient, (rows, columns))
    }
    by_type!(logits, of(logits, log_sum, targets, first, scale))
}
