// An answer as the tokens it is made of.
import { lazy } from "../shared/lazy.js";

/**
 * Shown instead of the answer's text while a person looks at its tokens. `goOnFrom` starts a version of the message
 * that begins with this text, which these tokens end.
 * @type {(props: {message: import("../shared/types.js").Message,
 *   goOnFrom: (text: string, tokens: import("../shared/types.js").TokenLogprob[]) => void}) => any}
 */
export const TokenView = lazy(async () => (await import("../tokens/view.js")).TokenView);
