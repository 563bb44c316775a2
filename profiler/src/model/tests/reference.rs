//! The layers once more, as one would write them for autograd: plain operations on whole matrices.

use candle_core::{D, DType, Result, Tensor};
use optpipe_configs::model::{Family, Mlp, Model, Norm, RopeScaling};
use std::collections::HashMap;

pub(super) type Parameters = HashMap<&'static str, Tensor>;

fn norm(model: &Model, p: &Parameters, x: &Tensor, name: [&str; 2]) -> Result<Tensor> {
    let x = match model.norm {
        Norm::Rms => x.clone(),
        Norm::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let power = (x.sqr()?.mean_keepdim(D::Minus1)? + model.norm_epsilon)?.sqrt()?;
    let y = x.broadcast_div(&power)?.broadcast_mul(&p[name[0]])?;
    match model.norm {
        Norm::Rms => Ok(y),
        Norm::Layer => y.broadcast_add(&p[name[1]]),
    }
}

fn linear(p: &Parameters, x: &Tensor, weight: &str, bias: &str, transposed: bool) -> Result<Tensor> {
    let weight = if transposed { p[weight].clone() } else { p[weight].t()? };
    let y = x.broadcast_matmul(&weight)?;
    match p.get(bias) {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

fn frequency(i: usize, width: usize, theta: f64, scaling: Option<RopeScaling>) -> f64 {
    let f = 1.0 / theta.powf(2.0 * i as f64 / width as f64);
    let Some(s) = scaling else { return f };
    let wavelength = 2.0 * std::f64::consts::PI / f;
    let old = s.original_positions as f64;
    if wavelength < old / s.high_frequency_factor {
        f
    } else if wavelength > old / s.low_frequency_factor {
        f / s.factor
    } else {
        let smooth = (old / wavelength - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor);
        (1.0 - smooth) * f / s.factor + smooth * f
    }
}

/// `x` `[batch, heads, sequence, width]`.
fn rope(model: &Model, x: &Tensor) -> Result<Tensor> {
    let Some(theta) = model.rope_theta else { return Ok(x.clone()) };
    let (_, _, sequence, width) = x.dims4()?;
    let mut angles = Vec::new();
    for position in 0..sequence {
        for i in 0..width {
            angles.push(position as f64 * frequency(i % (width / 2), width, theta, model.rope_scaling));
        }
    }
    let angles = Tensor::from_vec(angles, (sequence, width), x.device())?;
    let (cos, sin) = (angles.cos()?.to_dtype(x.dtype())?, angles.sin()?.to_dtype(x.dtype())?);
    let low = x.narrow(3, 0, width / 2)?;
    let high = x.narrow(3, width / 2, width / 2)?;
    let half_turned = Tensor::cat(&[high.neg()?, low], 3)?;
    x.broadcast_mul(&cos)? + half_turned.broadcast_mul(&sin)?
}

fn attention(model: &Model, p: &Parameters, x: &Tensor) -> Result<Tensor> {
    let (batch, sequence, _) = x.dims3()?;
    let (heads, kv, width) = (model.heads, model.kv_heads, model.head_dim);
    let gpt2 = model.family == Family::Gpt2;
    let (q, k, v) = if gpt2 {
        let all = linear(p, x, "attn.c_attn.weight", "attn.c_attn.bias", true)?;
        let (q, k) = (heads * width, kv * width);
        (all.narrow(2, 0, q)?, all.narrow(2, q, k)?, all.narrow(2, q + k, k)?)
    } else {
        (
            linear(p, x, "self_attn.q_proj.weight", "self_attn.q_proj.bias", false)?,
            linear(p, x, "self_attn.k_proj.weight", "self_attn.k_proj.bias", false)?,
            linear(p, x, "self_attn.v_proj.weight", "self_attn.v_proj.bias", false)?,
        )
    };
    let by_head = |x: Tensor, heads: usize| x.reshape((batch, sequence, heads, width));
    let (mut q, mut k, v) = (by_head(q, heads)?, by_head(k, kv)?, by_head(v, kv)?);
    if model.qk_norm {
        q = norm(model, p, &q, ["self_attn.q_norm.weight", ""])?;
        k = norm(model, p, &k, ["self_attn.k_norm.weight", ""])?;
    }
    let q = rope(model, &q.transpose(1, 2)?.contiguous()?)?;
    let k = rope(model, &k.transpose(1, 2)?.contiguous()?)?;
    let v = v.transpose(1, 2)?.contiguous()?;
    // Query head h uses key head h / group.
    let index: Vec<u32> = (0..heads).map(|head| (head / (heads / kv)) as u32).collect();
    let index = Tensor::from_vec(index, heads, x.device())?;
    let (k, v) = (k.index_select(&index, 1)?, v.index_select(&index, 1)?);
    let mut mask = Vec::new();
    for query in 0..sequence {
        for key in 0..sequence {
            let seen = key <= query && model.sliding_window.is_none_or(|window| query - key < window);
            mask.push(if seen { 0.0 } else { f64::NEG_INFINITY });
        }
    }
    let mask = Tensor::from_vec(mask, (sequence, sequence), x.device())?.to_dtype(x.dtype())?;
    let scores = (q.matmul(&k.t()?.contiguous()?)? / (width as f64).sqrt())?.broadcast_add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let mixed = probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((batch, sequence, heads * width))?;
    if gpt2 {
        linear(p, &mixed, "attn.c_proj.weight", "attn.c_proj.bias", true)
    } else {
        linear(p, &mixed, "self_attn.o_proj.weight", "self_attn.o_proj.bias", false)
    }
}

fn mlp(model: &Model, p: &Parameters, x: &Tensor) -> Result<Tensor> {
    match model.mlp {
        Mlp::GatedSilu => {
            let gate = linear(p, x, "mlp.gate_proj.weight", "mlp.gate_proj.bias", false)?;
            let up = linear(p, x, "mlp.up_proj.weight", "mlp.up_proj.bias", false)?;
            let silu = (&gate / (gate.neg()?.exp()? + 1.0)?)?;
            linear(p, &(silu * up)?, "mlp.down_proj.weight", "mlp.down_proj.bias", false)
        }
        Mlp::DenseGelu => {
            let up = linear(p, x, "mlp.c_fc.weight", "mlp.c_fc.bias", true)?;
            let inner = ((up.powf(3.0)? * 0.044715)? + &up)? * (2.0 / std::f64::consts::PI).sqrt();
            let gelu = ((inner?.tanh()? + 1.0)? * (up * 0.5)?)?;
            linear(p, &gelu, "mlp.c_proj.weight", "mlp.c_proj.bias", true)
        }
    }
}

pub(super) fn block(model: &Model, p: &Parameters, x: &Tensor) -> Result<Tensor> {
    let [first, second] = if model.family == Family::Gpt2 {
        [["ln_1.weight", "ln_1.bias"], ["ln_2.weight", "ln_2.bias"]]
    } else {
        [["input_layernorm.weight", ""], ["post_attention_layernorm.weight", ""]]
    };
    let x = (x + attention(model, p, &norm(model, p, x, first)?)?)?;
    &x + mlp(model, p, &norm(model, p, &x, second)?)?
}

pub(super) fn embedding(p: &Parameters, tokens: &Tensor) -> Result<Tensor> {
    let (batch, sequence) = tokens.dims2()?;
    let name = if p.contains_key("wte.weight") { "wte.weight" } else { "embed_tokens.weight" };
    let x = p[name].index_select(&tokens.flatten_all()?, 0)?.reshape((batch, sequence, ()))?;
    match p.get("wpe.weight") {
        Some(positions) => x.broadcast_add(&positions.narrow(0, 0, sequence)?),
        None => Ok(x),
    }
}

pub(super) fn head(model: &Model, p: &Parameters, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let names = if model.family == Family::Gpt2 { ["ln_f.weight", "ln_f.bias"] } else { ["norm.weight", "norm.bias"] };
    let logits = linear(p, &norm(model, p, x, names)?, "lm_head.weight", "", false)?;
    let logits = logits.flatten_to(1)?;
    let weights = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
    let probabilities = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
    let targets = targets.flatten_all()?.unsqueeze(1)?.to_dtype(DType::U32)?;
    probabilities.gather(&targets, 1)?.log()?.mean_all()?.neg()
}
