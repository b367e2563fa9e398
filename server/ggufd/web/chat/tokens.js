// An answer as the tokens it is made of.

/**
 * Shown instead of the answer's text while a person looks at its tokens. `goOnFrom` starts a version of the message
 * that begins with this text.
 * @param {{message: import("../shared/types.js").Message, goOnFrom: (text: string) => void}} props
 */
export function TokenView({ message, goOnFrom }) {
  void message;
  void goOnFrom;
  return null;
}
