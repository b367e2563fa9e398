export function tokenize(code: string, options: unknown): Array<[number, string]>;
export const languages: Record<string, object>;
