// Arguments of every kernel, shared by the host and the CUDA sources. See registry.h for the notation.
// A, B, E, P are batch axes (E episodes, P directions); N images, H x W pixels, C input channels, K filters or
// channels.
#pragma once
#include "registry.h"

namespace hg {
namespace signatures {

#define HG_CONV_ATTRIBUTES "stride:int pad_h:int pad_w:int precision:int"

// P = (H + 2*pad_h - R)/stride + 1, Q likewise. `precision` permits a device to multiply float32 as tf32 (1) or as
// three tf32 products (2) instead of as it is (0).
constexpr Signature conv2d_fprop{"conv2d_fprop", "x=AB|NHWC w=AB|RSCK -> y=AB|NPQK", HG_CONV_ATTRIBUTES};
constexpr Signature conv2d_dgrad{"conv2d_dgrad", "y_bar=AB|NPQK w=AB|RSCK -> x_bar=AB|NHWC", HG_CONV_ATTRIBUTES};
constexpr Signature conv2d_wgrad{"conv2d_wgrad", "x=AB|NHWC y_bar=AB|NPQK -> w_bar=AB|RSCK", HG_CONV_ATTRIBUTES};

// The fused block: 3x3 same convolution, batch normalization over (N, H, W), ReLU, 2x2 maximum.
constexpr Signature conv_bn_relu_pool_value{"conv_bn_relu_pool_value",
                                            "x=E|NHWC w=E|33CK gamma=E|K beta=E|K -> y=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK",
                                            "eps:float precision:int"};
constexpr Signature conv_bn_relu_pool_vjp{"conv_bn_relu_pool_vjp",
                                          "y_bar=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK x=E|NHWC w=E|33CK gamma=E|K"
                                          " -> x_bar?=E|NHWC w_bar=E|33CK gamma_bar=E|K beta_bar=E|K",
                                          "precision:int"};
constexpr Signature conv_bn_relu_pool_jvp{"conv_bn_relu_pool_jvp",
                                          "x=E|NHWC w=E|33CK gamma=E|K code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK"
                                          " x_dot?=PE|NHWC w_dot?=PE|33CK gamma_dot?=PE|K beta_dot?=PE|K"
                                          " -> y_dot=PE|NhwK z_dot=PE|NHWK z_dot_mean=PE|K c=PE|K",
                                          "precision:int"};
constexpr Signature conv_bn_relu_pool_vjp_jvp{
    "conv_bn_relu_pool_vjp_jvp",
    "y_bar=E|NhwK y_bar_dot?=PE|NhwK code:u8=E|NhwK mean=E|K rstd=E|K z=E|NHWK x=E|NHWC w=E|33CK gamma=E|K"
    " x_dot?=PE|NHWC w_dot?=PE|33CK gamma_dot?=PE|K z_dot=PE|NHWK z_dot_mean=PE|K c=PE|K"
    " -> x_bar_dot?=PE|NHWC w_bar_dot=PE|33CK gamma_bar_dot=PE|K beta_bar_dot=PE|K",
    "precision:int"};

// The fused block on data: x has neither tangent nor cotangent, and its patch statistics stand for the dense sums.
constexpr Signature patch_cov{"patch_cov", "x=E|NHWC -> patch_mean=E|g patch_cov=E|gg", ""};
constexpr Signature conv_bn_relu_pool_first_value{"conv_bn_relu_pool_first_value",
                                                  "x=E|NHWC w=E|33CK gamma=E|K beta=E|K patch_mean=E|g patch_cov=E|gg"
                                                  " -> y=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K",
                                                  "eps:float"};
constexpr Signature conv_bn_relu_pool_first_vjp{
    "conv_bn_relu_pool_first_vjp",
    "y_bar=E|NhwK code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg x=E|NHWC w=E|33CK gamma=E|K"
    " -> w_bar=E|33CK gamma_bar=E|K beta_bar=E|K",
    ""};
constexpr Signature conv_bn_relu_pool_first_jvp{"conv_bn_relu_pool_first_jvp",
                                                "x=E|NHWC w=E|33CK gamma=E|K code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg"
                                                " w_dot?=PE|33CK gamma_dot?=PE|K beta_dot?=PE|K -> y_dot=PE|NhwK",
                                                ""};
constexpr Signature conv_bn_relu_pool_first_vjp_jvp{
    "conv_bn_relu_pool_first_vjp_jvp",
    "y_bar=E|NhwK y_bar_dot?=PE|NhwK code:u8=E|NhwK mean=E|K rstd=E|K patch_mean=E|g patch_cov=E|gg"
    " x=E|NHWC w=E|33CK gamma=E|K w_dot?=PE|33CK gamma_dot?=PE|K"
    " -> w_bar_dot=PE|33CK gamma_bar_dot=PE|K beta_bar_dot=PE|K",
    ""};

// Batch normalization over M pixels, per episode and channel.
constexpr Signature batch_norm_value{"batch_norm_value", "x=E|MK gamma=E|K beta=E|K -> y=E|MK mean=E|K rstd=E|K", "eps:float"};
constexpr Signature batch_norm_vjp{"batch_norm_vjp",
                                   "y_bar=E|MK mean=E|K rstd=E|K x=E|MK gamma=E|K -> x_bar?=E|MK gamma_bar=E|K beta_bar=E|K", ""};
constexpr Signature batch_norm_jvp{"batch_norm_jvp",
                                   "x=E|MK gamma=E|K mean=E|K rstd=E|K x_dot?=PE|MK gamma_dot?=PE|K beta_dot?=PE|K"
                                   " -> y_dot=PE|MK x_dot_mean=PE|K c=PE|K",
                                   ""};
constexpr Signature batch_norm_vjp_jvp{"batch_norm_vjp_jvp",
                                       "y_bar=E|MK y_bar_dot?=PE|MK mean=E|K rstd=E|K x=E|MK gamma=E|K x_dot?=PE|MK gamma_dot?=PE|K"
                                       " x_dot_mean=PE|K c=PE|K -> x_bar_dot?=PE|MK gamma_bar_dot=PE|K beta_bar_dot=PE|K",
                                       ""};

// Maximum over size x size windows; Q = H/size by R = W/size of them. A code is the winner's place in its window, row
// by row. Given the codes the operation is linear: the tangent gathers, the cotangent scatters.
constexpr Signature max_pool_value{"max_pool_value", "x=E|HWK -> y=E|QRK code:u8=E|QRK", "size:int"};
constexpr Signature max_pool_jvp{"max_pool_jvp", "x_dot=PE|HWK code:u8=E|QRK -> y_dot=PE|QRK", "size:int"};
constexpr Signature max_pool_vjp{"max_pool_vjp", "y_bar=PE|QRK code:u8=E|QRK -> x_bar=PE|HWK", "size:int"};

// Cross-entropy of softmax(x w + bias) against labels, N examples of D features, K classes; residual = softmax minus
// one at the label.
constexpr Signature linear_cross_entropy_value{"linear_cross_entropy_value", "x=E|ND w=E|DK bias=E|K label:i64=E|N -> y=E|N residual=E|NK",
                                               ""};
constexpr Signature linear_cross_entropy_vjp{"linear_cross_entropy_vjp",
                                             "y_bar=EN| residual=E|NK x=E|ND w=E|DK -> x_bar?=E|ND w_bar?=E|DK bias_bar=E|K", ""};
constexpr Signature linear_cross_entropy_jvp{
    "linear_cross_entropy_jvp", "residual=E|NK x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK bias_dot?=PE|K -> y_dot=PE|N z_dot=PE|NK", ""};
constexpr Signature linear_cross_entropy_vjp_jvp{
    "linear_cross_entropy_vjp_jvp",
    "y_bar=EN| y_bar_dot?=PE|N residual=E|NK label:i64=E|N x=E|ND w=E|DK x_dot?=PE|ND w_dot?=PE|DK z_dot=PE|NK"
    " -> x_bar_dot?=PE|ND w_bar_dot?=PE|DK bias_bar_dot=PE|K",
    ""};

// Images by their rows in a staged data set, as numbers: byte / 255, correctly rounded. An image whose index is not in
// 0 .. M-1 is NaN, and nothing is read for it.
constexpr Signature gather_images{"gather_images", "images:u8=M|HWC index:i64=E|N -> x=E|NHWC", ""};

// Steps of the optimisers on all leaves of a pytree at once: w weights, v, m and s the optimiser's state, g gradient. A
// field is one number for all leaves, the attribute, or an array without axes per leaf, which then counts.
#define HG_SGD_ATTRIBUTES "lr:float momentum:float weight_decay:float nesterov:int"
constexpr Signature sgd_step_value{"sgd_step_value", "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*= -> w_next*=~ v_next?*=~",
                                   HG_SGD_ATTRIBUTES};
constexpr Signature sgd_step_jvp{"sgd_step_jvp",
                                 "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*="
                                 " w_dot?*=P~ v_dot?*=P~ g_dot?*=P~ lr_dot?*=P momentum_dot?*=P weight_decay_dot?*=P"
                                 " -> w_next_dot?*=P~ v_next_dot?*=P~",
                                 HG_SGD_ATTRIBUTES};
constexpr Signature sgd_step_vjp{"sgd_step_vjp",
                                 "w*=~ v?*=~ g*=~ lr?*= momentum?*= weight_decay?*="
                                 " w_next_bar?*=~ v_next_bar?*=~"
                                 " -> w_bar?*=~ v_bar?*=~ g_bar?*=~ lr_bar?=n momentum_bar?=n weight_decay_bar?=n",
                                 HG_SGD_ATTRIBUTES};

#define HG_ADAM_ATTRIBUTES "lr:float beta1:float beta2:float eps:float t:int"
constexpr Signature adam_step_value{
    "adam_step_value", "w*=~ m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*= -> w_next*=~ m_next*=~ s_next*=~", HG_ADAM_ATTRIBUTES};
constexpr Signature adam_step_jvp{"adam_step_jvp",
                                  "m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*="
                                  " w_dot?*=P~ m_dot?*=P~ s_dot?*=P~ g_dot?*=P~ lr_dot?*=P beta1_dot?*=P beta2_dot?*=P"
                                  " eps_dot?*=P -> w_next_dot?*=P~ m_next_dot?*=P~ s_next_dot?*=P~",
                                  HG_ADAM_ATTRIBUTES};
constexpr Signature adam_step_vjp{"adam_step_vjp",
                                  "m*=~ s*=~ g*=~ lr?*= beta1?*= beta2?*= eps?*="
                                  " w_next_bar?*=~ m_next_bar?*=~ s_next_bar?*=~"
                                  " -> w_bar?*=~ m_bar?*=~ s_bar?*=~ g_bar?*=~ lr_bar?=n beta1_bar?=n beta2_bar?=n"
                                  " eps_bar?=n",
                                  HG_ADAM_ATTRIBUTES};

}  // namespace signatures
}  // namespace hg
